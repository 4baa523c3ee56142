// The networks of a bundle by onnxruntime, 1.18 or later.
#pragma once

#include "pipeline.hpp"

#include <onnxruntime_cxx_api.h>

namespace kdc_edge {

/** How to open a bundle. */
struct Settings {
  int threads = 0;          // 0: as onnxruntime likes
  bool low_memory = false;  // one network is open at a time, and each picture opens them anew
  std::optional<int64_t> free_mib = kdc_edge::free_mib();
  /** Adds an execution provider, for example [](auto& o) { o.AppendExecutionProvider("XNNPACK", {}); } */
  std::function<void(Ort::SessionOptions&)> provider = {};
};

class OrtNetworks : public Networks {
 public:
  OrtNetworks(Bundle bundle, Settings settings) : bundle_(std::move(bundle)), settings_(std::move(settings)) {
    if (settings_.low_memory) return;
    for (const auto& [name, _] : bundle_.manifest.components) session(name);
  }

  std::vector<float> encode(const std::vector<int64_t>& ids) override {
    const int64_t tokens = spec().tokens, batch = static_cast<int64_t>(ids.size()) / tokens;
    return run("text_encoder", "last_hidden_state", {{"input_ids", {ids.begin(), ids.end()}, {batch, tokens}}});
  }

  std::vector<float> predict(const std::vector<float>& samples, float timestep,
                             const std::vector<float>& text) override {
    const int64_t batch = static_cast<int64_t>(samples.size()) / spec().latent_size(), tokens = spec().tokens;
    return run("unet", "out_sample",
               {{"sample", {samples.begin(), samples.end()}, latent(batch)},
                {"timestep", {timestep}, {}},
                {"encoder_hidden_states",
                 {text.begin(), text.end()},
                 {batch, tokens, static_cast<int64_t>(text.size()) / batch / tokens}}});
  }

  std::vector<float> decode(const std::vector<float>& latents) override {
    return run("vae_decoder", "sample", {{"latent_sample", {latents.begin(), latents.end()}, latent(1)}});
  }

 private:
  /** Numbers on their way to a port, whose type the graph says. */
  struct Input {
    const char* port;
    Vector values;
    std::vector<int64_t> shape;
  };

  const Spec& spec() const { return bundle_.manifest.pipeline; }

  std::vector<int64_t> latent(int64_t batch) const {
    const auto& sizes = spec().latent;
    return {batch, sizes[0], sizes[1], sizes[2]};
  }

  std::vector<float> run(const std::string& name, const char* output, const std::vector<Input>& inputs) {
    try {
      auto& network = session(name);
      std::vector<const char*> ports;
      std::vector<Ort::Value> values;
      for (const auto& input : inputs) {
        ports.push_back(input.port);
        values.push_back(tensor(type_of(network, input.port), input));
      }
      const auto found = network.Run(Ort::RunOptions{nullptr}, ports.data(), values.data(), values.size(), &output, 1);
      return floats(found[0]);
    } catch (const Ort::Exception& error) {
      throw cannot(name, error.what());
    } catch (const std::bad_alloc& error) {
      throw cannot(name, error.what());
    }
  }

  Ort::Session& session(const std::string& name) {
    if (const auto found = sessions_.find(name); found != sessions_.end()) return found->second;
    if (settings_.low_memory) sessions_.clear();
    const auto& component = bundle_.manifest.components.at(name);
    try {
      Ort::SessionOptions options;
      for (const auto& [key, value] : component.options) options.AddConfigEntry(key.c_str(), value.c_str());
      options.SetIntraOpNumThreads(settings_.threads);
      if (settings_.provider) settings_.provider(options);
      return sessions_.emplace(name, Ort::Session(environment(), bundle_.path(component.files[0]).c_str(), options))
          .first->second;
    } catch (const Ort::Exception& error) {
      throw cannot(name, error.what());
    }
  }

  static const Ort::Env& environment() {
    static const Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "kdc-edge");
    return env;
  }

  static ONNXTensorElementDataType type_of(const Ort::Session& network, const std::string& port) {
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t i = 0; i < network.GetInputCount(); ++i) {
      if (network.GetInputNameAllocated(i, allocator).get() != port) continue;
      const auto info = network.GetInputTypeInfo(i);
      return info.GetTensorTypeAndShapeInfo().GetElementType();
    }
    throw damaged("A network has no input '" + port + "'");
  }

  static Ort::Value tensor(ONNXTensorElementDataType type, const Input& input) {
    switch (type) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return filled<int64_t>(input);
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return filled<int32_t>(input);
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return filled<Ort::Float16_t>(input);
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return filled<float>(input);
      default: throw Problem(Problem::newer, "A network takes numbers that this app does not know. Update the app.");
    }
  }

  template <class T>
  static Ort::Value filled(const Input& input) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto value = Ort::Value::CreateTensor<T>(allocator, input.shape.data(), input.shape.size());
    auto* data = value.template GetTensorMutableData<T>();
    for (const double number : input.values) {
      if constexpr (std::is_same_v<T, Ort::Float16_t>) *data++ = T(static_cast<float>(number));
      else *data++ = static_cast<T>(number);
    }
    return value;
  }

  static std::vector<float> floats(const Ort::Value& value) {
    const auto info = value.GetTensorTypeAndShapeInfo();
    std::vector<float> numbers(info.GetElementCount());
    if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
      const auto* data = value.GetTensorData<Ort::Float16_t>();
      for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = data[i].ToFloat();
    } else {
      const auto* data = value.GetTensorData<float>();
      std::copy(data, data + numbers.size(), numbers.begin());
    }
    return numbers;
  }

  static Problem cannot(const std::string& name, const std::string& why) {
    if (why.find("alloc") != std::string::npos) {
      return {Problem::memory,
              "There is too little memory for the " + name + ". Close other programs, or switch low memory on."};
    }
    return {Problem::backend,
            "The " + name + " does not run here (" + why + "). Choose another provider, or a newer onnxruntime."};
  }

  Bundle bundle_;
  Settings settings_;
  std::map<std::string, Ort::Session> sessions_;
};

/** A bundle's pipeline. Problem: another runtime's, a newer format, damaged, too large for the memory, cannot run. */
inline Pipeline open(const Bundle& bundle, const Settings& settings = {}) {
  const auto& spec = bundle.manifest.pipeline;
  Tokenizer tokenizer(bundle.text("tokenizer/vocab.json"), bundle.text("tokenizer/merges.txt"), spec.tokens);
  return {spec, std::move(tokenizer), std::make_shared<OrtNetworks>(bundle, settings)};
}

inline Pipeline open(const std::filesystem::path& folder, const Settings& settings = {}) {
  return open(Bundle(folder, settings.free_mib), settings);
}

}  // namespace kdc_edge
