// What can go wrong, and JSON read so that a damaged file is said to be one.
#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <ostream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace kdc_edge {

using nlohmann::json;

/** In words for the person at the device; an app catches this and shows `what()`. */
struct Problem : std::runtime_error {
  enum Kind { usage, backend, memory, damaged, newer, runtime, cancelled };
  Kind kind;

  Problem(Kind kind, const std::string& words) : std::runtime_error(words), kind(kind) {}

  /** As kdc-edge has them; the shell's own for a program that was stopped. */
  int exit_code() const {
    switch (kind) {
      case usage: return 2;
      case backend: return 3;
      case memory: return 4;
      case cancelled: return 130;
      default: return 5;
    }
  }
};

/** Says any error in words; its exit code. */
inline int explain(const std::exception& error, std::ostream& out) {
  const auto* problem = dynamic_cast<const Problem*>(&error);
  const bool memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  out << (memory ? "There is too little memory. Close other programs, or fetch a smaller bundle." : error.what())
      << '\n';
  return problem ? problem->exit_code() : memory ? 4 : 1;
}

inline Problem damaged(const std::string& what) { return {Problem::damaged, what + ". Fetch the bundle again."}; }

/** All bytes of a file of the bundle; `name` is how the person knows it. */
inline std::string read(const std::filesystem::path& path, const std::string& name) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw damaged(name + " is missing");
  return {std::istreambuf_iterator<char>(file), {}};
}

inline json parse(const std::string& text, const std::string& name) {
  try {
    return json::parse(text);
  } catch (const json::parse_error& error) {
    throw damaged(name + " is damaged: not valid JSON at byte " + std::to_string(error.byte));
  }
}

/** Whether `value` is a T, without conversion: 4.5 is no int, true no number. */
template <class T>
bool is(const json& value) {
  if constexpr (std::is_same_v<T, json>) return true;
  else if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
  else if constexpr (std::is_same_v<T, std::string>) return value.is_string();
  else if constexpr (std::is_unsigned_v<T>) return value.is_number_unsigned();
  else if constexpr (std::is_integral_v<T>) return value.is_number_integer();
  else if constexpr (std::is_floating_point_v<T>) return value.is_number();
  else {  // a list
    if (!value.is_array()) return false;
    for (const auto& one : value) {
      if (!is<typename T::value_type>(one)) return false;
    }
    return true;
  }
}

/** The value at a path of names with dots; damaged where it is missing or another type's. */
template <class T = json>
T get(const json& data, const std::string& path, const std::string& file = "manifest.json") {
  const json* found = &data;
  for (size_t at = 0; at <= path.size();) {
    size_t end = std::min(path.find('.', at), path.size());
    if (!found->is_object() || !found->contains(path.substr(at, end - at))) throw damaged(file + " has no " + path);
    found = &(*found)[path.substr(at, end - at)];
    at = end + 1;
  }
  if (!is<T>(*found)) throw damaged(file + ": " + path + " is " + found->dump().substr(0, 40) + ", which it cannot be");
  return found->get<T>();
}

}  // namespace kdc_edge
