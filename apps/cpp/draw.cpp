// kdc-draw BUNDLE PROMPT [--seed N] [--steps N] [--guidance X] [--negative TEXT] [--sampler NAME] [-o FILE.ppm]
//                        [--low-memory] [--free-mib N]

#include "kdc_edge.hpp"

#include <csignal>
#include <iostream>

using kdc_edge::Problem;

namespace {

volatile std::sig_atomic_t stopped = 0;

struct Options {
  std::string bundle, output = "picture.ppm";
  kdc_edge::Request request;
  kdc_edge::Settings settings;
};

/** All of `text` as a number from `low` to `high`. */
template <class T>
T number(const std::string& name, const std::string& text, double low, double high) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool whole = !std::is_integral_v<T> || value == std::floor(value);
  if (text.empty() || *end != '\0' || !whole || !(low <= value && value <= high)) {
    throw Problem(Problem::usage, name + " is '" + text + "', which it cannot be.");
  }
  return static_cast<T>(value);
}

Options parse(const std::vector<std::string>& words) {
  Options options;
  std::vector<std::string> plain;
  for (size_t i = 0; i < words.size(); ++i) {
    const auto& word = words[i];
    const auto next = [&] {
      if (++i == words.size()) throw Problem(Problem::usage, word + " needs a value.");
      return words[i];
    };
    if (word == "--seed") options.request.seed = number<uint32_t>(word, next(), 0, 4294967295.0);
    else if (word == "--steps") options.request.steps = number<int>(word, next(), 1, 1000000);
    else if (word == "--guidance") options.request.guidance = number<double>(word, next(), 0, 1000);
    else if (word == "--negative") options.request.negative = next();
    else if (word == "--sampler") options.request.sampler = next();
    else if (word == "--free-mib") options.settings.free_mib = number<int64_t>(word, next(), 0, 1e12);
    else if (word == "--low-memory") options.settings.low_memory = true;
    else if (word == "-o") options.output = next();
    else if (word.rfind("--", 0) == 0) throw Problem(Problem::usage, "There is no option " + word + ".");
    else plain.push_back(word);
  }
  if (plain.size() != 2) {
    throw Problem(Problem::usage, "Say which bundle and what to draw: kdc-draw BUNDLE PROMPT [--seed N] [-o FILE.ppm]");
  }
  options.bundle = plain[0], options.request.prompt = plain[1];
  return options;
}

}  // namespace

int main(int count, char** words) try {
  const auto options = parse({words + 1, words + count});
  std::signal(SIGINT, [](int) { stopped = 1; });
  const auto pipeline = kdc_edge::open(options.bundle, options.settings);
  const auto picture = pipeline.draw(options.request, [](const kdc_edge::Frame& frame) {
    std::cerr << "step " << frame.index + 1 << " of " << frame.total << '\n';
    return stopped == 0;
  });
  if (!picture.notice().empty()) std::cerr << picture.notice() << '\n';
  picture.save(options.output);
  return 0;
} catch (const std::exception& error) {
  return kdc_edge::explain(error, std::cerr);
}
