#include "json_value.h"
#include "scan.h"

namespace ds_stage2ab::cpu {
namespace {

constexpr int kMaxKeyDigits = 9;
const std::vector<std::string> kBehindNumber = {"\"", ":"};

// The answer around its values: opening, keys, commas, closing.
class Document {
 public:
  Document(const Grammar& grammar, Found& found)
      : grammar_(grammar), found_(found), value_(grammar.quoted, found.nodes), lexemes_(&grammar.opening) {}

  bool closed() const { return closed_; }
  size_t num_kept() const { return num_kept_; }

  bool feed(uint8_t byte, int64_t at) {
    switch (step_) {
      case Step::opening:
        return take_lexeme(byte) && (!all_read() || open(at + 1));
      case Step::first_item:
        return is_space(byte) || (byte == static_cast<uint8_t>(grammar_.closing.front().front()) ? close(byte)
                                                                                                 : item(byte, at));
      case Step::item:
        return item(byte, at);
      case Step::key:
        return take_key(byte);
      case Step::number:
        return take_number(byte);
      case Step::behind_number:
        return take_behind_number(byte);
      case Step::value_start:
        if (is_space(byte)) {
          return true;
        }
        begin_value();
        return take_in_value(byte, at);
      case Step::in_value:
        return take_in_value(byte, at);
      case Step::after_item:
        return take_after_item(byte);
      case Step::closing:
        return close_on(byte);
    }
    return false;
  }

  bool coordinate(int64_t bin, int64_t slot, int64_t first, int64_t last) {
    const bool may_begin = step_ == Step::value_start || (step_ == Step::first_item && grammar_.key_head.empty());
    if (may_begin && !grammar_.quoted) {
      begin_value();
    }
    return step_ == Step::in_value && progress(value_.coordinate(bin, slot, first, last));
  }

 private:
  enum class Step {
    opening, first_item, item, key, number, behind_number, value_start, in_value, after_item, closing
  };

  void begin_value() {
    value_.begin();
    step_ = Step::in_value;
  }

  void expect(const std::vector<std::string>& lexemes, Step step) {
    lexemes_ = &lexemes;
    place_ = num_read_ = 0;
    step_ = step;
  }

  bool all_read() const { return place_ == lexemes_->size(); }

  bool take_lexeme(uint8_t byte) {
    const std::string& lexeme = (*lexemes_)[place_];
    if (is_space(byte) && num_read_ == 0) {
      return true;
    }
    if (byte != static_cast<uint8_t>(lexeme[num_read_])) {
      return false;
    }
    if (++num_read_ == lexeme.size()) {
      ++place_;
      num_read_ = 0;
    }
    return true;
  }

  bool open(int64_t end) {
    found_.opening_end = end;
    step_ = Step::first_item;
    return true;
  }

  bool item(uint8_t byte, int64_t at) {
    if (grammar_.key_head.empty()) {
      step_ = Step::value_start;
      return feed(byte, at);
    }
    num_read_ = 0;
    step_ = Step::key;
    return take_key(byte);
  }

  bool take_key(uint8_t byte) {
    if (is_space(byte) && num_read_ == 0) {
      return true;
    }
    if (byte != static_cast<uint8_t>(grammar_.key_head[num_read_])) {
      return false;
    }
    if (++num_read_ == grammar_.key_head.size()) {
      digits_.clear();
      step_ = Step::number;
    }
    return true;
  }

  bool take_number(uint8_t byte) {
    if (is_digit(byte)) {
      digits_.push_back(static_cast<char>(byte));
      return digits_.size() <= kMaxKeyDigits && (digits_.size() == 1 || digits_.front() != '0');
    }
    expect(kBehindNumber, Step::behind_number);
    return !digits_.empty() && byte == '"' && take_behind_number(byte);
  }

  bool take_behind_number(uint8_t byte) {
    const bool ok = take_lexeme(byte);
    if (all_read()) {
      step_ = Step::value_start;
    }
    return ok;
  }

  bool take_in_value(uint8_t byte, int64_t at) {
    const Fed fed = value_.feed(byte, at);
    if (fed != Fed::done_before) {
      return progress(fed);
    }
    if (!take_after_item(byte)) {
      return false;
    }
    keep();
    return true;
  }

  bool progress(Fed fed) {
    if (fed == Fed::done) {
      keep();
      step_ = Step::after_item;
    }
    return fed != Fed::refused;
  }

  void keep() {
    num_kept_ = found_.nodes.size();
    if (!digits_.empty()) {
      found_.nodes[value_.root()].number = std::stoll(digits_);
    }
  }

  bool take_after_item(uint8_t byte) {
    if (byte == ',') {
      step_ = grammar_.key_head.empty() ? Step::value_start : Step::item;
      return true;
    }
    if (is_space(byte)) {
      step_ = Step::after_item;
      return true;
    }
    return close(byte);
  }

  bool close(uint8_t byte) {
    expect(grammar_.closing, Step::closing);
    return close_on(byte);
  }

  bool close_on(uint8_t byte) {
    const bool ok = take_lexeme(byte);
    closed_ = all_read();
    return ok;
  }

  const Grammar& grammar_;
  Found& found_;
  ValueScan value_;
  const std::vector<std::string>* lexemes_;  // being read
  size_t place_ = 0;                         // among them
  size_t num_read_ = 0;                      // bytes of the lexeme, or of the key's head
  std::string digits_;                       // of the key
  Step step_ = Step::opening;
  size_t num_kept_ = 0;  // nodes of complete values
  bool closed_ = false;
};

// Bytes of the token that were read; -1 if it cannot continue the grammar.
int64_t feed_token(Document& document, const std::string& text, int64_t kind, int64_t slot, int64_t first,
                   int64_t last) {
  if (kind >= 0) {
    return document.coordinate(kind, slot, first, last) ? last - first : -1;
  }
  if (kind != kText) {
    return -1;
  }
  for (int64_t at = first; at < last; ++at) {
    if (!document.feed(static_cast<uint8_t>(text[at]), at)) {
      return -1;
    }
    if (document.closed()) {
      return at + 1 - first;
    }
  }
  return last - first;
}

}  // namespace

bool scan_rollout(const Grammar& grammar, const Response& response, Found& found) {
  std::vector<int64_t> kinds;
  if (!read_tokens(response, kinds, found)) {
    return false;
  }
  Document document(grammar, found);
  for (int64_t slot = 0; slot < response.num_ids && found.ended == Ended::end; ++slot) {
    const int64_t first = found.starts[slot], last = found.starts[slot + 1];
    const int64_t num_read = feed_token(document, found.text, kinds[slot], slot, first, last);
    if (document.closed()) {
      found.ended = Ended::closed;
      found.behind = slot + 1 < response.num_ids || first + num_read < last;
    } else if (num_read < 0) {
      found.ended = Ended::refused;
    }
  }
  found.nodes.resize(document.num_kept());
  return true;
}

}  // namespace ds_stage2ab::cpu
