// Noise, the noise schedule, and samplers over any denoise(x, sigma) -> x0: a port of apps/reference.py.
// x = x0 + sigma · noise, as C·H·W numbers; n evaluations of the network
#pragma once

#include "bundle.hpp"

#include <cmath>
#include <functional>
#include <limits>
#include <utility>

namespace kdc_edge {

using Vector = std::vector<double>;
using Denoise = std::function<Vector(const Vector&, double)>;

/** MT19937, seeded by init_genrand, and the polar method: numpy's RandomState. */
class Noise {
 public:
  explicit Noise(uint32_t seed) {
    state_[0] = seed;
    for (uint32_t i = 1; i < 624; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ state_[i - 1] >> 30) + i;
  }

  std::vector<float> operator()(int count) {
    std::vector<float> drawn(static_cast<size_t>(count));
    for (auto& value : drawn) value = static_cast<float>(normal());
    return drawn;
  }

 private:
  double normal() {
    if (!std::isnan(kept_)) return std::exchange(kept_, std::numeric_limits<double>::quiet_NaN());
    for (;;) {
      const double a = 2 * uniform() - 1, b = 2 * uniform() - 1, square = a * a + b * b;
      if (square > 0 && square < 1) {
        const double factor = std::sqrt(-2 * std::log(square) / square);
        kept_ = factor * a;
        return factor * b;
      }
    }
  }

  /** In [0, 1), 53 bits. */
  double uniform() {
    const uint32_t high = word() >> 5, low = word() >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
  }

  uint32_t word() {
    if (index_ == 624) twist();
    uint32_t y = state_[index_++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
  }

  void twist() {
    for (int i = 0; i < 624; ++i) {
      const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % 624] & 0x7fffffffu);
      state_[i] = state_[(i + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    index_ = 0;
  }

  uint32_t state_[624];
  int index_ = 624;
  double kept_ = std::numeric_limits<double>::quiet_NaN();  // of each pair one number is kept for the next call
};

/** number · vector + other · with. */
inline Vector mix(double number, const Vector& vector, double other, const Vector& with) {
  Vector sum(vector.size());
  for (size_t i = 0; i < sum.size(); ++i) sum[i] = number * vector[i] + other * with[i];
  return sum;
}

inline Vector scaled(Vector vector, double number) {
  for (auto& value : vector) value *= number;
  return vector;
}

/** The sample whose unit-variance form at `sigma` is that of `x` at `level`. */
inline Vector moved(const Vector& x, double level, double sigma) {
  return scaled(x, std::hypot(1, sigma) / std::hypot(1, level));
}

/** Sigmas of the training steps, rising; timesteps count from 0, the cleanest. */
struct Schedule {
  Betas betas;
  Vector sigmas;
  double final_sigma;

  explicit Schedule(const Betas& told) : betas(told) {
    const double power = betas.schedule == "scaled_linear" ? 2 : 1;
    const double first = std::pow(betas.start, 1 / power), last = std::pow(betas.end, 1 / power);
    double kept = 1;
    for (int i = 0; i < betas.train_steps; ++i) {
      kept *= 1 - std::pow(first + (last - first) * i / (betas.train_steps - 1), power);
      sigmas.push_back(std::sqrt((1 - kept) / kept));
    }
    final_sigma = betas.set_alpha_to_one ? 0 : sigmas[0];
  }

  /** Linear between two training steps. */
  double sigma(double timestep) const {
    const int low = std::clamp(static_cast<int>(timestep), 0, last());
    return sigmas[low] + (sigmas[low + 1] - sigmas[low]) * std::clamp(timestep - low, 0.0, 1.0);
  }

  /** The inverse: what the network is told. */
  double timestep(double sigma) const {
    const auto above = std::upper_bound(sigmas.begin(), sigmas.end(), sigma);
    const int low = std::clamp(static_cast<int>(above - sigmas.begin()) - 1, 0, last());
    return low + std::clamp((sigma - sigmas[low]) / (sigmas[low + 1] - sigmas[low]), 0.0, 1.0);
  }

  Vector timesteps(int steps) const {
    const int count = betas.train_steps;
    Vector spaced;
    for (int i = 0; i < steps; ++i) {
      if (betas.spacing == "linspace") spaced.push_back((steps - 1 - i) * ((count - 1.0) / std::max(steps - 1, 1)));
      else if (betas.spacing == "trailing")
        spaced.push_back(std::rint(count - i * (static_cast<double>(count) / steps)) - 1);
      else spaced.push_back((steps - 1 - i) * (count / steps) + betas.steps_offset);
    }
    return spaced;
  }

 private:
  int last() const { return static_cast<int>(sigmas.size()) - 2; }
};

/** Evaluation i is at sigmas[i], its step starts at sources[i] and lands on targets[i]; x begins as noise · start. */
struct Plan {
  Vector timesteps, sigmas, sources, targets;
  double start;
};

/** `std::rint` is to the even number at a half. */
inline Plan plan(const std::string& sampler, const Schedule& schedule, int steps) {
  const int count = schedule.betas.train_steps, most = sampler == "lcm" ? 50 : count;
  if (steps < 1 || steps > most) {
    throw Problem(Problem::usage,
                  std::to_string(steps) + " steps are not possible. Choose 1 to " + std::to_string(most) + ".");
  }
  const int stride = count / steps;
  const auto& spacing = schedule.betas.spacing;
  Plan plan{};
  auto& spaced = plan.timesteps;
  if (sampler == "lcm") {  // some of the 50 that consistency models are distilled with
    for (int i = 0; i < steps; ++i) spaced.push_back((50 - i * 50 / steps) * (count / 50) - 1);
  } else {
    spaced = schedule.timesteps(steps + (sampler == "dpmpp_2m" && spacing != "trailing"));
    spaced.resize(steps);
  }
  if (sampler != "euler") {
    for (auto& t : spaced) t = std::rint(t);
  }
  if (sampler == "pndm" && steps > 1) spaced.insert(spaced.begin() + 1, double(spaced[1]));  // the second one twice
  for (const double t : spaced) plan.sigmas.push_back(schedule.sigma(t));
  plan.sources = plan.sigmas;
  plan.targets.assign(plan.sigmas.begin() + 1, plan.sigmas.end());
  plan.targets.push_back(0);
  if (sampler == "ddim" || sampler == "pndm") {
    for (size_t i = 0; i < spaced.size(); ++i) {
      plan.targets[i] = spaced[i] >= stride ? schedule.sigma(spaced[i] - stride) : schedule.final_sigma;
    }
  }
  if (sampler == "pndm" && steps > 1) {
    plan.sources[1] = schedule.sigma(spaced[1] + stride), plan.targets[1] = plan.sigmas[1];
  }
  const bool plain = sampler == "euler" && spacing != "leading";
  plan.start = plain ? plan.sigmas[0] : std::hypot(1, plan.sigmas[0]);
  return plan;
}

/** After evaluation `index` of `total`: x at noise level `sigma`, and the x0 that the network saw in it. */
struct Step {
  int index, total;
  double sigma;
  const Vector &x, &x0;

  /** In unit variance: what the decoder takes after the last step. */
  Vector latents() const { return scaled(x, 1 / std::hypot(1, sigma)); }
};

using OnStep = std::function<void(const Step&)>;

namespace samplers {

/** Calls `each` after every evaluation of the network. */
struct Loop {
  const Denoise& denoise;
  const Plan& plan;
  const OnStep& each;

  void tell(size_t i, const Vector& x, const Vector& x0) const {
    each({static_cast<int>(i), static_cast<int>(plan.sigmas.size()), plan.targets[i], x, x0});
  }
};

inline void euler(const Loop& loop, Vector x, Noise&) {
  double level = loop.plan.sigmas[0];
  for (size_t i = 0; i < loop.plan.sigmas.size(); ++i) {
    const double sigma = loop.plan.sigmas[i], step = (loop.plan.targets[i] - sigma) / sigma;
    x = moved(x, level, sigma);
    const auto x0 = loop.denoise(x, sigma);
    x = mix(1 + step, x, -step, x0);
    level = loop.plan.targets[i];
    loop.tell(i, x, x0);
  }
}

inline void dpmpp_2m(const Loop& loop, Vector x, Noise&) {
  Vector previous;
  double h_previous = 0;
  for (size_t i = 0; i < loop.plan.sigmas.size(); ++i) {
    const double sigma = loop.plan.sigmas[i], target = loop.plan.targets[i];
    const auto x0 = loop.denoise(x, sigma);
    auto ahead = x0;
    if (target > 0) {
      const double h = std::log(sigma / target), half = 0.5 * h / h_previous;
      if (!previous.empty()) ahead = mix(1 + half, x0, -half, previous);
      previous = x0, h_previous = h;
    }
    x = mix(target / sigma, x, 1 - target / sigma, ahead);
    loop.tell(i, x, x0);
  }
}

inline void pndm(const Loop& loop, Vector x, Noise&) {
  static const std::vector<Vector> weights{
      {1}, {3 / 2., -1 / 2.}, {23 / 12., -16 / 12., 5 / 12.}, {55 / 24., -59 / 24., 37 / 24., -9 / 24.}};
  const auto& [_, sigmas, sources, targets, __] = loop.plan;
  const auto first = x;
  std::vector<Vector> slopes;  // newest first
  double level = sigmas[0];
  for (size_t i = 0; i < sigmas.size(); ++i) {
    x = moved(x, level, sigmas[i]);
    const auto x0 = loop.denoise(x, sigmas[i]);
    auto slope = mix(1 / sigmas[i], x, -1 / sigmas[i], x0);
    if (i == 1) {
      slope = mix(0.5, slope, 0.5, slopes[0]);
      x = moved(first, sigmas[0], sources[1]);
    } else {
      slopes.insert(slopes.begin(), slope);
      slopes.resize(std::min(slopes.size(), weights.size()));
      const auto& weight = weights[slopes.size() - 1];
      slope = scaled(slopes[0], weight[0]);
      for (size_t k = 1; k < slopes.size(); ++k) slope = mix(1, slope, weight[k], slopes[k]);
    }
    x = mix(1, x, targets[i] - sources[i], slope);
    level = targets[i];
    loop.tell(i, x, x0);
  }
}

inline void lcm(const Loop& loop, Vector x, Noise& noise) {
  for (size_t i = 0; i < loop.plan.sigmas.size(); ++i) {
    const double sigma = loop.plan.sigmas[i], target = loop.plan.targets[i], scaled = loop.plan.timesteps[i] * 10;
    const double skip = 0.25 / (scaled * scaled + 0.25), out = scaled / std::hypot(scaled, 0.5);
    const auto x0 = loop.denoise(x, sigma);
    x = mix(out, x0, skip / std::hypot(1, sigma), x);
    if (target > 0) {
      const auto drawn = noise(static_cast<int>(x.size()));
      x = mix(1, x, target, Vector(drawn.begin(), drawn.end()));
    }
    loop.tell(i, x, x0);
  }
}

inline const std::map<std::string, void (*)(const Loop&, Vector, Noise&)> table{
    {"euler", euler}, {"ddim", euler}, {"dpmpp_2m", dpmpp_2m}, {"pndm", pndm}, {"lcm", lcm}};

}  // namespace samplers

inline bool is_sampler(const std::string& name) { return samplers::table.count(name) > 0; }

/** `each` hears of every step; leaving by an exception is how a picture is cancelled. */
inline void sample(const std::string& sampler, const Denoise& denoise, const Vector& x, const Plan& plan, Noise& noise,
                   const OnStep& each) {
  samplers::table.at(sampler)({denoise, plan, each}, x, noise);
}

/** The denoiser of a network that sees unit variance and predicts epsilon, v or x0. */
inline Denoise denoiser(const Denoise& network, const std::string& predicts, const Schedule& schedule) {
  if (predicts != "epsilon" && predicts != "v_prediction" && predicts != "sample") {
    throw Problem(Problem::newer, "This app knows no prediction '" + predicts + "'. Update the app.");
  }
  return [=](const Vector& x, double sigma) {
    const double size = std::hypot(1, sigma);
    const auto out = network(scaled(x, 1 / size), schedule.timestep(sigma));
    if (predicts == "sample") return out;
    return predicts == "epsilon" ? mix(1, x, -sigma, out) : mix(1 / (size * size), x, -sigma / size, out);
  };
}

}  // namespace kdc_edge
