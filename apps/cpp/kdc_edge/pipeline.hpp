// Text to picture: tokenize, encode, denoise, decode; over any networks.
#pragma once

#include "samplers.hpp"
#include "tokenizer.hpp"

namespace kdc_edge {

/** What runs the networks; onnxruntime, or anything in a test. B is 1, or 2 under guidance: unconditional first. */
struct Networks {
  virtual ~Networks() = default;

  /** (B·T) ids to (B·T·D) hidden states. */
  virtual std::vector<float> encode(const std::vector<int64_t>& ids) = 0;

  /** (B·C·H·W) samples in unit variance and (B·T·D) text to the (B·C·H·W) prediction. */
  virtual std::vector<float> predict(const std::vector<float>& samples, float timestep,
                                     const std::vector<float>& text) = 0;

  /** (C·H·W) latents to a picture (3·height·width), -1 to 1. */
  virtual std::vector<float> decode(const std::vector<float>& latents) = 0;
};

/** What to draw; what is not given is the bundle's own value. */
struct Request {
  std::string prompt;  // UTF-8
  uint32_t seed = 0;
  std::optional<int> steps = {};
  std::optional<double> guidance = {};
  std::string negative = {};
  std::optional<std::string> sampler = {};
};

/** Red, green, blue, row by row; `dropped` tokens of the prompt did not fit. */
struct Picture {
  int width, height;
  std::vector<uint8_t> rgb;
  int dropped = 0;

  /** For the person who typed; empty if all of it fits. */
  std::string notice() const {
    return dropped == 0 ? "" : "The prompt is " + std::to_string(dropped) + " tokens too long; its end was left out.";
  }

  /** As PPM, which needs no library. */
  void save(const std::filesystem::path& path) const {
    std::ofstream file(path, std::ios::binary);
    file << "P6\n" << width << ' ' << height << "\n255\n";
    file.write(reinterpret_cast<const char*>(rgb.data()), static_cast<std::streamsize>(rgb.size()));
    if (!file.flush()) throw Problem(Problem::usage, path.string() + " cannot be written. Name another file.");
  }
};

/** A step of a picture; `preview()` shows it so far, at the cost of one call of the decoder. */
struct Frame {
  int index, total;
  std::function<Picture()> preview;
};

/** Hears of every step; false cancels. */
using OnFrame = std::function<bool(const Frame&)>;

/** Where a sampler begins, from unit noise. */
inline Vector start(const std::vector<float>& unit, const Plan& plan) {
  return scaled(Vector(unit.begin(), unit.end()), plan.start);
}

/** Not for two threads at once. */
class Pipeline {
 public:
  const Spec spec;
  const Schedule schedule;
  const Tokenizer tokenizer;

  Pipeline(const Spec& spec, Tokenizer tokenizer, std::shared_ptr<Networks> networks)
      : spec(spec), schedule(spec.betas), tokenizer(std::move(tokenizer)), networks_(std::move(networks)) {
    if (!is_sampler(spec.sampler)) {
      throw Problem(Problem::newer, "This app has no sampler '" + spec.sampler + "'. Update the app.");
    }
  }

  /** Problem where a number is impossible, the networks fail, or `each` says no. */
  Picture draw(const Request& request, const OnFrame& each = {}) const {
    const double guidance = request.guidance.value_or(spec.guidance);
    const auto sampler = request.sampler.value_or(spec.sampler);
    if (!is_sampler(sampler)) {
      throw Problem(Problem::usage,
                    "There is no sampler '" + sampler + "'. Choose euler, ddim, dpmpp_2m, pndm or lcm.");
    }
    const auto steps = plan(sampler, schedule, request.steps.value_or(spec.steps));
    std::vector<int64_t> ids;
    int dropped = 0;
    for (const auto& text : texts(request.prompt, request.negative, guidance)) {
      const auto encoded = tokenizer(text);
      ids.insert(ids.end(), encoded.ids.begin(), encoded.ids.end());
      dropped = encoded.dropped;  // the prompt is last
    }
    const auto denoise = denoiser(networks_->encode(ids), guidance);
    Noise noise(request.seed);
    Vector latents;
    const auto unit = noise(spec.latent_size());
    sample(sampler, denoise, start(unit, steps), steps, noise, [&](const Step& step) {
      latents = step.latents();
      const Vector x0 = step.x0;
      if (each && !each({step.index, step.total, [this, x0] { return decode(x0); }})) {
        throw Problem(Problem::cancelled, "Stopped; no picture was made.");
      }
    });
    auto picture = decode(latents);
    picture.dropped = dropped;
    return picture;
  }

  /** Guidance 1 needs no unconditional half. */
  static std::vector<std::string> texts(const std::string& prompt, const std::string& negative, double guidance) {
    return guidance == 1 ? std::vector<std::string>{prompt} : std::vector<std::string>{negative, prompt};
  }

  /** Under `text` (B·T·D). x0 is affine in every prediction, so guiding the prediction guides x0. */
  Denoise denoiser(const std::vector<float>& text, double guidance) const {
    const auto network = [this, text, guidance](const Vector& x, double timestep) {
      std::vector<float> samples(x.begin(), x.end());
      if (guidance != 1) samples.insert(samples.end(), x.begin(), x.end());
      const auto out = sized(networks_->predict(samples, static_cast<float>(timestep), text), samples.size());
      Vector first(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(x.size()));
      return guidance == 1 ? first
                           : mix(1 - guidance, first, guidance,
                                 Vector(out.end() - static_cast<std::ptrdiff_t>(x.size()), out.end()));
    };
    return kdc_edge::denoiser(network, spec.predicts, schedule);
  }

  std::vector<float> encode(const std::vector<int64_t>& ids) const { return networks_->encode(ids); }

  /** Of latents in unit variance. Problem where the networks gave no numbers. */
  Picture decode(const Vector& latents) const {
    const auto unscaled = scaled(latents, 1 / spec.latent_scaling);
    const size_t plane = static_cast<size_t>(spec.width) * static_cast<size_t>(spec.height);
    const auto sample = sized(networks_->decode({unscaled.begin(), unscaled.end()}), 3 * plane);
    Picture picture{spec.width, spec.height, std::vector<uint8_t>(sample.size())};
    for (size_t i = 0; i < sample.size(); ++i) {
      const float value = sample[i % 3 * plane + i / 3];
      if (!std::isfinite(value)) {
        throw Problem(Problem::backend,
                      "The network gave no picture here. Choose another provider, or another bundle.");
      }
      picture.rgb[i] = static_cast<uint8_t>(std::rint(std::clamp(value / 2 + 0.5f, 0.0f, 1.0f) * 255));
    }
    return picture;
  }

 private:
  static std::vector<float> sized(std::vector<float> out, size_t wanted) {
    if (out.size() != wanted) throw damaged("A network gives another size than the manifest says");
    return out;
  }

  std::shared_ptr<Networks> networks_;
};

}  // namespace kdc_edge
