// What tests/apps/test_cpp.py runs, compiled once: checks WHAT WORDS…, JSON on stdout. Without onnxruntime's header,
// what needs none.

#include "kdc_edge/bundle.hpp"
#include "kdc_edge/samplers.hpp"
#include "kdc_edge/tokenizer.hpp"

#include <iostream>

using namespace kdc_edge;
using Words = std::vector<std::string>;

#if __has_include(<onnxruntime_cxx_api.h>)
#define main draw_main
#include "draw.cpp"
#undef main
#define main conformance_main
#include "conformance.cpp"
#undef main
#include "sample.cpp"  // docs/embedding.md's

/** Cancelled at the second step; previews; the same picture with one network at a time. */
json frames(const Words& words) {
  const auto pipeline = open(words.at(0));
  json out{{"seen", json::array()}};
  try {
    pipeline.draw({"red apple", 3},
                  [&](const Frame& frame) { return out["seen"].push_back(frame.index), frame.index < 1; });
  } catch (const Problem& problem) {
    out["cancelled"] = {problem.what(), problem.exit_code()};
  }
  std::vector<Picture> previews;
  const auto picture =
      pipeline.draw({"red apple", 3}, [&](const Frame& frame) { return previews.push_back(frame.preview()), true; });
  Settings frugal;
  frugal.low_memory = true;
  out["previews"] = previews.size();
  out["the first is not the last"] = previews.front().rgb != previews.back().rgb;
  out["the last is the picture"] = previews.back().rgb == picture.rgb;
  out["frugal is the same"] = open(words.at(0), frugal).draw({"red apple", 3}).rgb == picture.rgb;
  return out;
}
#endif

json texts(const json& cases, const Words& words) {
  json wrong = json::array();
  const std::filesystem::path folder = words.at(1);
  const Tokenizer tokenizer(read(folder / "vocab.json", "vocab.json"), read(folder / "merges.txt", "merges.txt"), 77);
  for (const auto& one : cases) {
    const auto found = tokenizer(one["text"].get<std::string>());
    if (json(found.ids) != one["ids"] || found.dropped != one["dropped"]) wrong.push_back(one["text"]);
  }
  return wrong;
}

json noise(const json& cases) {
  json wrong = json::array();
  for (const auto& one : cases) {
    Noise draw(one["seed"].get<uint32_t>());
    const auto first = draw(7), second = draw(1300);
    const bool same = first == one["first"].get<std::vector<float>>() &&
                      std::vector<float>(second.end() - 3, second.end()) == one["second"].get<std::vector<float>>();
    if (!same) wrong.push_back(one["seed"]);
  }
  return wrong;
}

Vector network(const Vector& x, double timestep) {
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    out[i] = std::tanh(0.7 * x[i] + 0.3 * (-1 + 2.0 * i / (x.size() - 1)) + std::sin(timestep / 150));
  }
  return out;
}

/** Largest difference, of the largest value. */
json off(const json& one) {
  const Schedule schedule(Betas::of(one["betas"]));
  const auto sampler = one["sampler"].get<std::string>();
  const auto steps = plan(sampler, schedule, one["steps"].get<int>());
  Noise first(3), further(5);
  const auto unit = first(12);
  std::vector<Vector> found;
  sample(sampler, denoiser(network, one["prediction_type"], schedule), scaled({unit.begin(), unit.end()}, steps.start),
         steps, further, [&](const Step& step) { found.push_back(step.x); });
  const auto wanted = one["x"].get<std::vector<Vector>>();
  double most = 0, largest = 0;
  for (size_t s = 0; s < wanted.size(); ++s) {
    for (size_t i = 0; i < wanted[s].size(); ++i) {
      most = std::max(most, std::abs(found.at(s).at(i) - wanted[s][i]));
      largest = std::max(largest, std::abs(wanted[s][i]));
    }
  }
  const bool same = found.size() == wanted.size() && steps.timesteps == one["timesteps"].get<Vector>();
  return {{"sampler", sampler}, {"off", most / largest}, {"same timesteps", same}};
}

json vectors(const Words& words) {
  const auto all = parse(read(words.at(0), "vectors.json"), "vectors.json");
  json samplers = json::array(), hashes;
  for (const auto& one : all["samplers"]) samplers.push_back(off(one));
  for (const int length : {0, 1, 55, 56, 63, 64, 65, 119, 120, 1000}) {
    hashes[std::to_string(length)] = sha256(std::string(length, 'a'));
  }
  return {{"texts", texts(all["tokenizer"], words)},
          {"noise", noise(all["noise"])},
          {"samplers", samplers},
          {"hashes", hashes}};
}

json opened(const Words& words) {
  return {{"id", Bundle(words.at(0), words.size() > 1 ? std::stoll(words[1]) : 4096).manifest.id}};
}

int main(int count, char** words) try {
  const std::string what = count > 1 ? words[1] : "";
  const Words more(words + 2, words + count);
#ifdef ORT_API_VERSION
  if (what == "draw") return draw_main(count - 1, words + 1);
  if (what == "conformance") return conformance_main(count - 1, words + 1);
  if (what == "sample") return std::cout << draw(more.at(0)).rgb.size() << '\n', 0;
  if (what == "frames") return std::cout << frames(more) << '\n', 0;
#endif
  std::cout << (what == "vectors" ? vectors(more) : opened(more)) << '\n';
} catch (const std::exception& error) {
  return explain(error, std::cerr);
}
