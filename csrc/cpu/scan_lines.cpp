#include "scan.h"
#include "utf8.h"

namespace ds_stage2ab::cpu {
namespace {

// The line that is being read: a description, then values of `num_coordinates` coordinates each.
class Lines {
 public:
  Lines(size_t num_coordinates, Found& found) : num_coordinates_(num_coordinates), found_(found) {}

  // Whether nothing was written, or the last thing was the last coordinate of a value.
  bool may_end() const { return after_box_ || (last_ == 0 && corners_.empty()); }

  bool feed(uint8_t byte, int64_t at) {
    if (!character_.open()) {
      if (byte == '\n' && after_box_) {
        value_first_ = first_ = last_ = at + 1;
        after_box_ = false;
        return true;
      }
      if (byte == '\n' || !corners_.empty() || after_box_ || (byte >= 0x80 && !character_.begin(byte))) {
        return false;
      }
    } else if (!character_.take(byte)) {
      return false;
    }
    last_ = at + 1;
    return last_ - first_ <= kMaxValueBytes;
  }

  bool coordinate(int64_t bin, int64_t slot, int64_t first, int64_t last) {
    if (character_.open()) {
      return false;
    }
    corners_.push_back(Node{static_cast<int64_t>(Kind::coordinate), first, last, -1, slot, bin});
    after_box_ = corners_.size() == num_coordinates_;
    if (after_box_) {
      complete(last);
    }
    return true;
  }

 private:
  void complete(int64_t last) {
    const int64_t row = static_cast<int64_t>(found_.nodes.size());
    found_.nodes.push_back(Node{static_cast<int64_t>(Kind::array), value_first_, last, -1, -1, -1});
    found_.nodes.push_back(Node{static_cast<int64_t>(Kind::string), first_, last_, row, -1, -1});
    for (Node& corner : corners_) {
      corner.parent = row;
      found_.nodes.push_back(corner);
    }
    corners_.clear();
    value_first_ = last;
  }

  size_t num_coordinates_;
  Found& found_;
  Character character_;
  int64_t first_ = 0, last_ = 0;  // of the line's description
  std::vector<Node> corners_;     // of the box that is being read
  int64_t value_first_ = 0;       // of that box: the line's first byte, or that of its first coordinate
  bool after_box_ = false;
};

bool take(Lines& lines, const std::string& text, int64_t kind, int64_t slot, int64_t first, int64_t last) {
  if (kind >= 0) {
    return lines.coordinate(kind, slot, first, last);
  }
  bool ok = kind == kText;
  for (int64_t at = first; ok && at < last; ++at) {
    ok = lines.feed(static_cast<uint8_t>(text[at]), at);
  }
  return ok;
}

}  // namespace

bool scan_lines(size_t num_coordinates, const Response& response, Found& found) {
  std::vector<int64_t> kinds;
  if (!read_tokens(response, kinds, found)) {
    return false;
  }
  Lines lines(num_coordinates, found);
  bool ok = true;
  for (int64_t slot = 0; ok && slot < response.num_ids; ++slot) {
    ok = take(lines, found.text, kinds[slot], slot, found.starts[slot], found.starts[slot + 1]);
  }
  found.opening_end = 0;
  found.ended = !ok ? Ended::refused : lines.may_end() ? Ended::closed : Ended::end;
  return true;
}

}  // namespace ds_stage2ab::cpu
