// A bundle's folder: manifest.json, and every file as it says; docs/bundle.md has all of it.
#pragma once

#include "problem.hpp"
#include "sha256.hpp"

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <sstream>

namespace kdc_edge {

inline constexpr int kFormat = 1;

/** `pipeline.betas`: the noise schedule. */
struct Betas {
  std::string schedule;
  double start, end;
  int train_steps;
  std::string spacing;
  int steps_offset;
  bool set_alpha_to_one;

  static Betas of(const json& data) {
    Betas betas{get<std::string>(data, "schedule"), get<double>(data, "start"),        get<double>(data, "end"),
                get<int>(data, "train_steps"),      get<std::string>(data, "spacing"), get<int>(data, "steps_offset"),
                get<bool>(data, "set_alpha_to_one")};
    if (!(0 < betas.start && betas.start <= betas.end && betas.end < 1) || betas.train_steps < 2) {
      throw damaged("manifest.json is damaged: nobody can follow its betas");
    }
    return betas;
  }
};

/** `pipeline`: how the components make a picture. */
struct Spec {
  int height, width;
  std::vector<int> latent;  // C, H, W
  double latent_scaling;
  int tokens;
  std::string predicts;
  Betas betas;
  std::string sampler;
  int steps;
  double guidance;

  /** C·H·W. */
  int latent_size() const { return latent[0] * latent[1] * latent[2]; }

  static Spec of(const json& data) {
    auto image = get<std::vector<int>>(data, "image_size"), latent = get<std::vector<int>>(data, "latent");
    auto shapes = image;
    shapes.insert(shapes.end(), latent.begin(), latent.end());
    bool small = shapes.empty() || *std::min_element(shapes.begin(), shapes.end()) < 1;
    if (image.size() != 2 || latent.size() != 3 || small) {
      throw damaged("manifest.json is damaged: a size is impossible");
    }
    if (get<std::string>(data, "rng") != "numpy-randomstate") {
      throw damaged("manifest.json is damaged: nobody knows its noise");
    }
    Spec spec{image[0],
              image[1],
              latent,
              get<double>(data, "latent_scaling"),
              get<int>(data, "tokens"),
              get<std::string>(data, "prediction_type"),
              Betas::of(get(data, "betas")),
              get<std::string>(data, "sampler"),
              get<int>(data, "steps"),
              get<double>(data, "guidance")};
    if (!(spec.latent_scaling > 0) || spec.tokens < 3) throw damaged("manifest.json is damaged: a number is too small");
    return spec;
  }
};

struct Component {
  std::vector<std::string> files;              // the graph, then what it reads
  std::map<std::string, std::string> options;  // onnxruntime's session options

  static Component of(const json& data) {
    Component component{get<std::vector<std::string>>(data, "files"), {}};
    const auto options = get(data, "options");
    for (const auto& [key, value] : options.items()) {
      component.options[key] = value.is_string() ? value.get<std::string>() : value.dump();
    }
    return component;
  }
};

struct FileEntry {
  std::string sha256;
  uint64_t bytes;
};

/** SHA-256 of the canonical JSON of pipeline, components, files: sorted keys, no spaces, numbers as they are spelled.
 */
inline std::string bundle_id(const std::string& text) {
  std::string spelled;  // each number as a string, behind a NUL
  for (size_t i = 0, end; i < text.size(); i = end) {
    end = i + 1;
    if (text[i] == '"') {
      while (text[end] != '"') end += text[end] == '\\' ? 2 : 1;
      spelled.append(text, i, ++end - i);
    } else if (text[i] == '-' || std::isdigit(static_cast<unsigned char>(text[i]))) {
      end = text.find_first_not_of("+-.eE0123456789", i);
      spelled += "\"\\u0000" + text.substr(i, end - i) + '"';
    } else {
      spelled += text[i];
    }
  }
  const auto data = json::parse(spelled);
  const auto identity =
      json{{"pipeline", data["pipeline"]}, {"components", data["components"]}, {"files", data["files"]}}.dump();
  const std::string mark = "\"\\u0000";
  std::string canonical;
  for (size_t at = 0, next; at < identity.size(); at = next) {
    next = identity.find(mark, at);
    canonical.append(identity, at, std::min(next, identity.size()) - at);
    if (next == std::string::npos) break;
    size_t end = identity.find('"', next += mark.size());
    canonical.append(identity, next, end - next);
    next = end + 1;
  }
  return sha256(canonical);
}

/** What an app needs of manifest.json. */
struct Manifest {
  std::string id, name, runtime, precision;
  Spec pipeline;
  std::map<std::string, Component> components;
  std::map<std::string, FileEntry> files;
  std::optional<int64_t> memory_mib;

  static Manifest parse(const std::string& text) {
    const auto data = kdc_edge::parse(text, "manifest.json");
    const int format = get<int>(data, "format");
    if (format > kFormat) throw Problem(Problem::newer, "This bundle is newer than the app. Update the app.");
    if (format < kFormat) {
      throw Problem(Problem::damaged, "This bundle is too old for the app. Convert its model again.");
    }
    Manifest manifest{{},
                      get<std::string>(data, "name"),
                      get<std::string>(data, "runtime"),
                      get<std::string>(data, "precision"),
                      Spec::of(get(data, "pipeline")),
                      {},
                      {},
                      {}};
    const auto files = get(data, "files"), components = get(data, "components");
    for (const auto& [name, entry] : files.items()) {
      if (!is_safe(name)) throw damaged("The manifest lists '" + name + "', which is outside the bundle");
      manifest.files[name] = {get<std::string>(entry, "sha256"), get<uint64_t>(entry, "bytes")};
    }
    for (const char* name : {"text_encoder", "unet", "vae_decoder"}) {
      const auto component = Component::of(get(components, name));
      if (component.files.empty()) throw damaged("The manifest has no file for the " + std::string(name));
      for (const auto& file : component.files) manifest.listed(file);
      manifest.components[name] = component;
    }
    for (const char* file : {"tokenizer/vocab.json", "tokenizer/merges.txt"}) manifest.listed(file);
    const std::string need = "requires.memory_mib";
    if (!get(data, need).is_null()) manifest.memory_mib = get<int64_t>(data, need);
    manifest.id = bundle_id(text);
    return manifest;
  }

  /** A plain path inside the folder. */
  static bool is_safe(const std::string& name) {
    if (name.find_first_of(std::string("\\:\0", 3)) != std::string::npos) return false;
    std::istringstream parts(name + "/.");  // so that an empty last part is seen
    for (std::string part; std::getline(parts, part, '/') && !parts.eof();) {
      if (part.empty() || part == "." || part == "..") return false;
    }
    return true;
  }

  void listed(const std::string& file) const {
    if (files.count(file) == 0) throw damaged("The manifest vouches for no " + file);
  }
};

/** MiB that this device can spare now; nothing where this does not know how to ask. */
inline std::optional<int64_t> free_mib() {
  std::ifstream file("/proc/meminfo");  // Linux and Android
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("MemAvailable:", 0) == 0) return std::stoll(line.substr(13)) / 1024;
  }
  return {};
}

/** A folder whose every file is as the manifest says. */
class Bundle {
 public:
  const std::filesystem::path folder;
  const Manifest manifest;

  /** Problem: not a bundle, another runtime's, a newer format, damaged, or more than the `free` MiB. */
  explicit Bundle(const std::filesystem::path& folder, std::optional<int64_t> free = free_mib(),
                  const std::string& runtime = "onnx")
      : folder(folder), manifest(manifest_of(folder)) {
    if (manifest.runtime != runtime) {
      throw Problem(Problem::runtime, "This bundle is made for " + manifest.runtime + "; this app runs bundles for " +
                                          runtime + ". Fetch one for " + runtime + ".");
    }
    if (free && manifest.memory_mib && *manifest.memory_mib > *free) {
      throw Problem(Problem::memory, "This bundle needs " + std::to_string(*manifest.memory_mib) + " MiB of memory, " +
                                         std::to_string(*free) +
                                         " MiB are free. Close other programs, or fetch a smaller bundle.");
    }
    for (const auto& [name, entry] : manifest.files) verify(name, entry);
  }

  std::filesystem::path path(const std::string& name) const { return folder / name; }
  std::string text(const std::string& name) const { return read(path(name), name); }

 private:
  static Manifest manifest_of(const std::filesystem::path& folder) {
    const auto path = folder / "manifest.json";
    if (!std::filesystem::is_regular_file(path)) throw damaged("This folder is no bundle: it has no manifest.json");
    return Manifest::parse(read(path, "manifest.json"));
  }

  void verify(const std::string& name, const FileEntry& entry) const {
    std::error_code missing;
    const auto seen = std::filesystem::file_size(path(name), missing);
    if (missing) throw damaged(name + " is missing");
    if (seen != entry.bytes) {
      throw damaged(name + " has " + std::to_string(seen) + " bytes and should have " + std::to_string(entry.bytes));
    }
    std::ifstream file(path(name), std::ios::binary);
    if (sha256(file) != entry.sha256) throw damaged(name + " is damaged: its SHA-256 is not the manifest's");
  }
};

}  // namespace kdc_edge
