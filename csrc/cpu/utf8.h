// What must follow the lead byte of a UTF-8 character (Unicode, table 3-7).
#pragma once

#include <array>
#include <cstdint>

namespace ds_stage2ab::cpu {

class Character {
 public:
  // Whether bytes of a character are still to come.
  bool open() const { return num_left_ > 0; }

  void clear() { num_left_ = 0; }

  // Take the lead of a character of several bytes; false if it can lead none.
  bool begin(uint8_t lead) {
    constexpr Range anything{0x80, 0xBF};
    if (lead >= 0xC2 && lead <= 0xDF) {
      num_left_ = 1;
      left_[0] = anything;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      num_left_ = 2;
      left_[0] = anything;
      left_[1] = lead == 0xE0 ? Range{0xA0, 0xBF} : lead == 0xED ? Range{0x80, 0x9F} : anything;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      num_left_ = 3;
      left_[0] = left_[1] = anything;
      left_[2] = lead == 0xF0 ? Range{0x90, 0xBF} : lead == 0xF4 ? Range{0x80, 0x8F} : anything;
    }
    return num_left_ > 0;
  }

  // Take the next byte of an open character; false if it cannot be that.
  bool take(uint8_t byte) {
    const auto [low, high] = left_[--num_left_];
    return low <= byte && byte <= high;
  }

 private:
  struct Range {
    uint8_t low, high;
  };

  std::array<Range, 3> left_{};  // what the next bytes must be, the next one last
  int num_left_ = 0;
};

}  // namespace ds_stage2ab::cpu
