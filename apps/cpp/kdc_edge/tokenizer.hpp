// CLIP's byte-pair encoding over vocab.json and merges.txt: apps/reference.py, line by line. Unicode is utf8proc's.
#pragma once

#include "problem.hpp"

#include <utf8proc.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <memory>
#include <unordered_map>

namespace kdc_edge {

/** `ids` (tokens), and how many tokens of the text did not fit. */
struct Encoded {
  std::vector<int64_t> ids;
  int dropped;
};

class Tokenizer {
 public:
  /** `tokens` ids for every text: start, the text, end, and end again as padding. */
  Tokenizer(const std::string& vocab, const std::string& merges, int tokens) : tokens_(tokens) {
    const auto ids = parse(vocab, "tokenizer/vocab.json");
    for (const auto& [piece, id] : ids.items()) vocab_[piece] = number(id);
    start_ = id_of(kStart), end_ = id_of(kEnd);
    for (size_t at = 0, end; at < merges.size(); at = end + 1) {
      end = std::min(merges.find('\n', at), merges.size());
      const auto line = merges.substr(at, end - at);
      if (!line.empty() && line.rfind("#version", 0) != 0) ranks_.emplace(line, static_cast<int>(ranks_.size()));
    }
  }

  /** Problem where `text` is not UTF-8. */
  Encoded operator()(const std::string& text) const {
    auto ids = encode(text);
    const auto room = static_cast<size_t>(tokens_ - 2);
    const auto dropped = ids.size() > room ? ids.size() - room : 0;
    ids.resize(ids.size() - dropped);
    ids.insert(ids.begin(), start_);
    ids.resize(tokens_, end_);
    return {ids, static_cast<int>(dropped)};
  }

 private:
  using Points = std::vector<int32_t>;
  enum class Kind { space, letter, number, other };
  inline static const std::string kStart = "<|startoftext|>", kEnd = "<|endoftext|>";

  std::vector<int64_t> encode(const std::string& text) const {
    std::vector<int64_t> ids;
    for (size_t at = 0; at < text.size();) {
      const auto start = text.find(kStart, at), end = text.find(kEnd, at);
      const auto where = std::min({start, end, text.size()});
      for (const auto& word : words(text.substr(at, where - at))) {
        for (const auto& piece : merge(word)) ids.push_back(vocab_.count(piece) ? vocab_.at(piece) : end_);
      }
      if (where < text.size()) ids.push_back(start < end ? start_ : end_);
      at = where + (start < end ? kStart : kEnd).size();
    }
    return ids;
  }

  /** One letter per UTF-8 byte, the last one marked; then the pair of lowest rank becomes one, until none is left. */
  std::vector<std::string> merge(const std::string& word) const {
    static const auto letters = byte_letters();
    std::vector<std::string> pieces;
    for (const char byte : word) pieces.push_back(letters[static_cast<unsigned char>(byte)]);
    pieces.back() += "</w>";
    for (;;) {
      int lowest = std::numeric_limits<int>::max();
      size_t best = 0;
      for (size_t i = 0; i + 1 < pieces.size(); ++i) {
        const auto found = ranks_.find(pieces[i] + ' ' + pieces[i + 1]);
        if (found != ranks_.end() && found->second < lowest) lowest = found->second, best = i;
      }
      if (lowest == std::numeric_limits<int>::max()) return pieces;
      pieces[best] += pieces[best + 1];
      pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
  }

  /** GPT-2's letter for each byte: itself where it is printable in Latin-1, else the next from U+0100 up. */
  static std::array<std::string, 256> byte_letters() {
    std::array<std::string, 256> letters;
    for (int byte = 0, next = 256; byte < 256; ++byte) {
      const bool printable = (33 <= byte && byte <= 126) || (161 <= byte && byte <= 172) || byte >= 174;
      letters[byte] = utf8({printable ? byte : next++});
    }
    return letters;
  }

  /** NFC; lower case of each character by itself; then contractions, runs of letters, single digits, runs of the rest.
   */
  static std::vector<std::string> words(const std::string& text) {
    const auto points = lower(text);
    std::vector<std::string> found;
    for (size_t i = 0, end; i < points.size(); i = end) {
      const auto special = prefix(points, i, {kStart, kEnd});  // spelled in capitals
      const auto brief = prefix(points, i, {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"});
      const auto kind = kind_of(points[i]);
      end = i + std::max<size_t>({special.size(), brief.size(), 1});
      if (!special.empty()) {
        found.insert(found.end(),
                     {special.substr(0, 2), special.substr(2, special.size() - 4), special.substr(special.size() - 2)});
      } else if (kind != Kind::space) {
        if (brief.empty() && kind != Kind::number) {
          while (end < points.size() && kind_of(points[end]) == kind) ++end;
        }
        found.push_back(
            utf8({points.begin() + static_cast<std::ptrdiff_t>(i), points.begin() + static_cast<std::ptrdiff_t>(end)}));
      }
    }
    return found;
  }

  static Points lower(const std::string& text) {
    utf8proc_uint8_t* made = nullptr;
    const auto size =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                     &made, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> composed(made, &std::free);
    if (size < 0) throw Problem(Problem::usage, "The prompt is not UTF-8. Type it again, or save it as UTF-8.");
    Points points;
    for (utf8proc_ssize_t at = 0; at < size;) {
      utf8proc_int32_t point;
      at += utf8proc_iterate(made + at, size - at, &point);
      points.push_back(point == 0x130 ? 'i' : utf8proc_tolower(point));
      if (point == 0x130) points.push_back(0x307);  // İ: the one character whose lower case is two
    }
    return points;
  }

  /** The first of `names` that stands at `at`, or "". */
  static std::string prefix(const Points& points, size_t at, const std::vector<std::string>& names) {
    for (const auto& name : names) {
      if (name.size() <= points.size() - at &&
          std::equal(name.begin(), name.end(), points.begin() + static_cast<std::ptrdiff_t>(at))) {
        return name;
      }
    }
    return "";
  }

  /** Unicode's White_Space, its categories L* and N*, and the rest. */
  static Kind kind_of(int32_t point) {
    static const std::u32string spaces = U"\t\n\v\f\r \u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000";
    if (spaces.find(static_cast<char32_t>(point)) != spaces.npos || (0x2000 <= point && point <= 0x200a)) {
      return Kind::space;
    }
    const auto category = utf8proc_category(point);
    if (UTF8PROC_CATEGORY_LU <= category && category <= UTF8PROC_CATEGORY_LO) return Kind::letter;
    return UTF8PROC_CATEGORY_ND <= category && category <= UTF8PROC_CATEGORY_NO ? Kind::number : Kind::other;
  }

  static std::string utf8(const Points& points) {
    std::string text;
    for (const auto point : points) {
      std::array<utf8proc_uint8_t, 4> bytes;
      const auto size = utf8proc_encode_char(point, bytes.data());
      text.append(bytes.begin(), bytes.begin() + size);
    }
    return text;
  }

  static int64_t number(const json& id) {
    if (!id.is_number_integer()) throw damaged("tokenizer/vocab.json is damaged");
    return id.get<int64_t>();
  }

  int64_t id_of(const std::string& name) const {
    const auto found = vocab_.find(name);
    if (found == vocab_.end()) throw damaged("tokenizer/vocab.json has no " + name);
    return found->second;
  }

  int tokens_;
  int64_t start_, end_;
  std::unordered_map<std::string, int64_t> vocab_;
  std::unordered_map<std::string, int> ranks_;  // "first second"
};

}  // namespace kdc_edge
