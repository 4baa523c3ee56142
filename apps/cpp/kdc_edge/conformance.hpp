// golden/ of a bundle, and what this machine makes of it: the stages of docs/conformance.md, each from golden inputs.
// `kdc-edge conformance <bundle> --results` judges.
#pragma once

#include "pipeline.hpp"

#include <cstring>

namespace kdc_edge {

/** golden/golden.json and golden/vectors.safetensors; docs/conformance.md has them byte for byte. */
class Golden {
 public:
  explicit Golden(const Bundle& bundle)
      : settings(parse(bundle.text("golden/golden.json"), "golden/golden.json")),
        data_(bundle.text("golden/vectors.safetensors")) {
    uint64_t length = 0;
    if (data_.size() >= 8) std::memcpy(&length, data_.data(), 8);
    if (data_.size() < 8 || length > data_.size() - 8) throw damaged("golden/vectors.safetensors is damaged");
    header_ = parse(data_.substr(8, length), "golden/vectors.safetensors");
    data_.erase(0, 8 + length);
  }

  const json settings;

  template <class T>
  T told(const std::string& key) const {
    return get<T>(settings, key, "golden/golden.json");
  }

  std::vector<int64_t> shape(const std::string& array) const { return entry<std::vector<int64_t>>(array, "shape"); }

  /** Row `p` of the first axis. */
  template <class T>
  std::vector<T> row(const std::string& array, size_t p) const {
    const auto offsets = entry<std::vector<uint64_t>>(array, "data_offsets");
    const auto rows = static_cast<uint64_t>(shape(array).at(0)), bytes = (offsets.at(1) - offsets.at(0)) / rows;
    if (offsets[0] > offsets[1] || offsets[1] > data_.size()) throw damaged("golden/vectors.safetensors is damaged");
    std::vector<T> values(bytes / sizeof(T));
    std::memcpy(values.data(), data_.data() + offsets[0] + p * bytes, values.size() * sizeof(T));
    return values;
  }

 private:
  template <class T>
  T entry(const std::string& array, const std::string& key) const {
    return get<T>(header_, array + "." + key, "golden/vectors.safetensors");
  }

  json header_;
  std::string data_;
};

/** `bytes` in base64. */
inline std::string base64(const std::string& bytes) {
  static const char* letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t word = 0;
    for (size_t k = 0; k < 3; ++k) {
      word = word << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0);
    }
    for (size_t k = 0; k < 4; ++k) out += i + k <= bytes.size() ? letters[word >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

/** Measures every stage, in order. */
class Conformance {
 public:
  Conformance(const Bundle& bundle, const Pipeline& pipeline)
      : id_(bundle.manifest.id),
        golden_(bundle),
        pipeline_(pipeline),
        prompts_(golden_.told<std::vector<std::string>>("prompts")),
        guidance_(golden_.told<double>("guidance")),
        seed_(golden_.told<uint32_t>("seed")),
        negative_(golden_.told<std::string>("negative")),
        sampler_(golden_.told<std::string>("sampler")),
        plan_(plan(sampler_, pipeline.schedule, golden_.told<int>("steps"))) {}

  /** docs/conformance.md's results.json; `app` says what ran. */
  json results(const std::string& app) const {
    json stages;
    stages["text_ids"] = stored("text_ids", ids(golden_.told<std::vector<std::string>>("texts")));
    stages["input_ids"] = stored(
        "input_ids", each<int64_t>([&](size_t p) { return ids(pipeline_.texts(prompts_[p], negative_, guidance_)); }));
    stages["noise"] = stored("noise", each<float>([&](size_t p) { return noise(p)(size()); }));
    std::vector<float> timesteps, sigmas(plan_.targets.begin(), plan_.targets.end());
    for (const double sigma : plan_.sigmas) timesteps.push_back(static_cast<float>(pipeline_.schedule.timestep(sigma)));
    stages["timesteps"] = stored("timesteps", timesteps);
    stages["sigmas"] = stored("sigmas", sigmas);
    stages["last_hidden_state"] = stored("last_hidden_state", each<float>([&](size_t p) { return prompt_row(p); }));
    stages["latents"] = stored("latents", each<float>([&](size_t p) { return latents(p); }));
    stages["images"] = stored("images", each<uint8_t>([&](size_t p) { return image(p); }));
    stages["pictures"] = stored("images", each<uint8_t>([&](size_t p) { return picture(p); }));
    return {{"format", 1}, {"bundle", id_}, {"app", app}, {"stages", stages}};
  }

 private:
  int size() const { return pipeline_.spec.latent_size(); }
  Noise noise(size_t p) const { return Noise(seed_ + static_cast<uint32_t>(p)); }
  std::vector<float> hidden(size_t p) const { return pipeline_.encode(golden_.row<int64_t>("input_ids", p)); }

  std::vector<int64_t> ids(const std::vector<std::string>& texts) const {
    std::vector<int64_t> all;
    for (const auto& text : texts) {
      const auto encoded = pipeline_.tokenizer(text);
      all.insert(all.end(), encoded.ids.begin(), encoded.ids.end());
    }
    return all;
  }

  /** The prompt's own row is the last one. */
  std::vector<float> prompt_row(size_t p) const {
    const auto all = hidden(p);
    const auto size = golden_.row<float>("last_hidden_state", p).size();
    return {all.end() - static_cast<std::ptrdiff_t>(size), all.end()};
  }

  std::vector<uint8_t> image(size_t p) const {
    const auto steps = golden_.row<float>("latents", p);
    return pipeline_.decode({steps.end() - size(), steps.end()}).rgb;
  }

  std::vector<uint8_t> picture(size_t p) const {
    const auto seed = seed_ + static_cast<uint32_t>(p);
    return pipeline_.draw({prompts_[p], seed, golden_.told<int>("steps"), guidance_, negative_, sampler_}).rgb;
  }

  /** After every step, the text being the golden one; under guidance with this machine's own for the negative. */
  std::vector<float> latents(size_t p) const {
    auto text = hidden(p);
    const auto golden = golden_.row<float>("last_hidden_state", p);
    std::copy(golden.begin(), golden.end(), text.end() - static_cast<std::ptrdiff_t>(golden.size()));
    auto further = noise(p);
    further(size());
    std::vector<float> all;
    const auto x = start(golden_.row<float>("noise", p), plan_);
    sample(sampler_, pipeline_.denoiser(text, guidance_), x, plan_, further, [&](const Step& step) {
      const auto now = step.latents();
      all.insert(all.end(), now.begin(), now.end());
    });
    return all;
  }

  template <class T, class Make>
  std::vector<T> each(Make make) const {
    std::vector<T> all;
    for (size_t p = 0; p < prompts_.size(); ++p) {
      const auto made = make(p);
      all.insert(all.end(), made.begin(), made.end());
    }
    return all;
  }

  /** dtype, shape and little-endian bytes, as docs/conformance.md asks for them. */
  template <class T>
  json stored(const std::string& array, const std::vector<T>& values) const {
    const char* dtype = std::is_same_v<T, int64_t> ? "int64" : std::is_same_v<T, float> ? "float32" : "uint8";
    const std::string bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    return {{"dtype", dtype}, {"shape", golden_.shape(array)}, {"data", base64(bytes)}};
  }

  std::string id_;
  Golden golden_;
  const Pipeline& pipeline_;
  std::vector<std::string> prompts_;
  double guidance_;
  uint32_t seed_;
  std::string negative_, sampler_;
  Plan plan_;
};

}  // namespace kdc_edge
