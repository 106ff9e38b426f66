// A pushdown automaton for one JSON value, fed byte by byte: ds_stage2ab/ops/json_value.py, which has the words, in C++.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "scan.h"
#include "utf8.h"

namespace ds_stage2ab::cpu {

constexpr int kMaxDepth = 8;

enum class Fed { taken, done, done_before, refused };

inline bool is_space(uint8_t byte) { return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r'; }
inline bool is_digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

class ValueScan {
 public:
  // Nodes are appended to `nodes`, those of an incomplete value too.
  ValueScan(bool quoted, std::vector<Node>& nodes) : quoted_(quoted), nodes_(nodes) {}

  // What follows is another value.
  void begin() {
    root_ = static_cast<int64_t>(nodes_.size());
    depth_ = 0;
    character_.clear();
    step_ = Step::begin;
  }

  int64_t root() const { return root_; }

  Fed feed(uint8_t byte, int64_t at) { return limited(take(byte, at), at + 1); }

  Fed coordinate(int64_t bin, int64_t slot, int64_t first, int64_t last) {
    if (quoted_) {
      return limited(coordinate_in_string(bin, slot, first, last), last);
    }
    if (step_ != Step::begin && step_ != Step::first_element) {
      return Fed::refused;
    }
    const int64_t row = attach(Kind::coordinate, first);
    nodes_[row].slot = slot;
    nodes_[row].number = bin;
    return limited(complete(row, last, false), last);
  }

 private:
  enum class Step {
    begin, first_element, first_key, key, colon, after, in_string, in_escape, in_hex, in_number, in_literal
  };
  enum class Number { minus, zero, integer, point, fraction, exponent, sign, power, none };

  Fed limited(Fed fed, int64_t last) const {
    const bool went_on = fed == Fed::taken || fed == Fed::done;
    return went_on && last - nodes_[root_].first > kMaxValueBytes ? Fed::refused : fed;
  }

  int64_t attach(Kind kind, int64_t first) {
    const int64_t parent = depth_ > 0 ? open_[depth_ - 1] : -1;
    nodes_.push_back(Node{static_cast<int64_t>(kind), first, -1, parent, -1, -1});
    return static_cast<int64_t>(nodes_.size()) - 1;
  }

  Fed complete(int64_t row, int64_t last, bool is_key) {
    nodes_[row].last = last;
    if (depth_ == 0) {
      return Fed::done;
    }
    step_ = is_key ? Step::colon : Step::after;
    return Fed::taken;
  }

  bool in_object() const { return nodes_[open_[depth_ - 1]].kind == static_cast<int64_t>(Kind::object); }

  Fed go_on(Step step) {
    step_ = step;
    return Fed::taken;
  }

  static Fed taken_if(bool holds) { return holds ? Fed::taken : Fed::refused; }

  Fed take(uint8_t byte, int64_t at) {
    switch (step_) {
      case Step::begin:
        return take_begin(byte, at);
      case Step::first_element:
        return is_space(byte) ? Fed::taken : byte == ']' ? close(at) : take_begin(byte, at);
      case Step::first_key:
        return byte == '}' ? close(at) : take_key(byte, at);
      case Step::key:
        return take_key(byte, at);
      case Step::colon:
        return byte == ':' ? go_on(Step::begin) : taken_if(is_space(byte));
      case Step::after:
        return take_after(byte, at);
      case Step::in_string:
        return take_in_string(byte, at);
      case Step::in_escape:
        return take_in_escape(byte);
      case Step::in_hex:
        return take_in_hex(byte);
      case Step::in_number:
        return take_in_number(byte, at);
      case Step::in_literal:
        return take_in_literal(byte, at);
    }
    return Fed::refused;
  }

  Fed take_begin(uint8_t byte, int64_t at) {
    if (is_space(byte) && depth_ > 0) {
      return Fed::taken;
    }
    if (byte == '{' || byte == '[') {
      return begin_container(byte == '{', at);
    }
    if (byte == '"') {
      return begin_string(at, false);
    }
    if (byte == '-' || is_digit(byte)) {
      scalar_ = attach(Kind::number, at);
      number_ = byte == '-' ? Number::minus : byte == '0' ? Number::zero : Number::integer;
      return go_on(Step::in_number);
    }
    for (const std::string_view literal : {"true", "false", "null"}) {
      if (byte == static_cast<uint8_t>(literal.front())) {
        scalar_ = attach(Kind::literal, at);
        rest_ = literal.substr(1);
        return go_on(Step::in_literal);
      }
    }
    return Fed::refused;
  }

  Fed begin_container(bool is_object, int64_t at) {
    if (depth_ == kMaxDepth) {
      return Fed::refused;
    }
    open_[depth_] = attach(is_object ? Kind::object : Kind::array, at);
    ++depth_;
    return go_on(is_object ? Step::first_key : Step::first_element);
  }

  Fed begin_string(int64_t at, bool is_key) {
    scalar_ = attach(Kind::string, at);
    is_key_ = is_key;
    return go_on(Step::in_string);
  }

  Fed take_key(uint8_t byte, int64_t at) {
    if (byte == '"') {
      return begin_string(at, true);
    }
    return taken_if(is_space(byte));
  }

  Fed take_after(uint8_t byte, int64_t at) {
    if (byte == ',') {
      return go_on(in_object() ? Step::key : Step::begin);
    }
    return byte == (in_object() ? '}' : ']') ? close(at) : taken_if(is_space(byte));
  }

  Fed close(int64_t at) {
    --depth_;
    return complete(open_[depth_], at + 1, false);
  }

  Fed take_in_string(uint8_t byte, int64_t at) {
    if (character_.open()) {
      return taken_if(character_.take(byte));
    }
    if (byte == '"') {
      return end_string(at);
    }
    if (byte == '\\') {
      return go_on(Step::in_escape);
    }
    return taken_if(byte >= 0x80 ? character_.begin(byte) : byte >= 0x20);
  }

  Fed coordinate_in_string(int64_t bin, int64_t slot, int64_t first, int64_t last) {
    if (step_ != Step::in_string || character_.open()) {
      return Fed::refused;
    }
    if (first == nodes_[scalar_].first + 1) {
      nodes_[scalar_].slot = slot;
      nodes_[scalar_].number = bin;
      coordinate_end_ = last;
    }
    return Fed::taken;
  }

  Fed end_string(int64_t at) {
    if (at != coordinate_end_) {
      nodes_[scalar_].slot = nodes_[scalar_].number = -1;
    }
    return complete(scalar_, at + 1, is_key_);
  }

  Fed take_in_escape(uint8_t byte) {
    if (byte == 'u') {
      num_hex_ = 4;
      return go_on(Step::in_hex);
    }
    step_ = Step::in_string;
    return taken_if(std::string_view("\"\\/bfnrt").find(static_cast<char>(byte)) != std::string_view::npos);
  }

  Fed take_in_hex(uint8_t byte) {
    if (--num_hex_ == 0) {
      step_ = Step::in_string;
    }
    return taken_if(is_digit(byte) || (byte >= 'a' && byte <= 'f') || (byte >= 'A' && byte <= 'F'));
  }

  static Number next(Number state, uint8_t byte) {
    const bool digit = is_digit(byte), exponent = byte == 'e' || byte == 'E';
    switch (state) {
      case Number::minus:
        return byte == '0' ? Number::zero : digit ? Number::integer : Number::none;
      case Number::zero:
        return byte == '.' ? Number::point : exponent ? Number::exponent : Number::none;
      case Number::integer:
        return digit ? Number::integer : byte == '.' ? Number::point : exponent ? Number::exponent : Number::none;
      case Number::point:
        return digit ? Number::fraction : Number::none;
      case Number::fraction:
        return digit ? Number::fraction : exponent ? Number::exponent : Number::none;
      case Number::exponent:
        return digit ? Number::power : byte == '+' || byte == '-' ? Number::sign : Number::none;
      case Number::sign:
      case Number::power:
        return digit ? Number::power : Number::none;
      case Number::none:
        return Number::none;
    }
    return Number::none;
  }

  Fed take_in_number(uint8_t byte, int64_t at) {
    const Number state = next(number_, byte);
    if (state != Number::none) {
      number_ = state;
      return Fed::taken;
    }
    const bool may_end = number_ == Number::zero || number_ == Number::integer || number_ == Number::fraction ||
                         number_ == Number::power;
    if (!may_end) {
      return Fed::refused;
    }
    return complete(scalar_, at, false) == Fed::done ? Fed::done_before : take(byte, at);
  }

  Fed take_in_literal(uint8_t byte, int64_t at) {
    if (byte != static_cast<uint8_t>(rest_.front())) {
      return Fed::refused;
    }
    rest_.remove_prefix(1);
    return rest_.empty() ? complete(scalar_, at + 1, false) : Fed::taken;
  }

  const bool quoted_;
  std::vector<Node>& nodes_;
  Step step_ = Step::begin;
  int64_t root_ = 0;
  std::array<int64_t, kMaxDepth> open_{};  // rows of the containers around the current place
  int depth_ = 0;
  int64_t scalar_ = 0;  // row of the string, number or literal being read
  bool is_key_ = false;
  std::string_view rest_;  // of a literal
  Number number_ = Number::none;
  int num_hex_ = 0;                // hexadecimal digits still to come in an escape
  Character character_;            // of several bytes, being read
  int64_t coordinate_end_ = -1;  // offset behind the coordinate that a string began with
};

}  // namespace ds_stage2ab::cpu
