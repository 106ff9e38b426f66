// What a scan of a response takes and gives; the words are those of ds_stage2ab/ops/scan.py and ops/lines.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ds_stage2ab::cpu {

constexpr int64_t kText = -1, kSpecial = -2;  // kinds of ids that are no coordinate
constexpr int64_t kMaxValueBytes = 4096;

enum class Kind { object, array, string, number, literal, coordinate };  // reference.KINDS
enum class Ended { closed, refused, end };                               // reference.ENDED

struct Grammar {
  std::vector<std::string> opening, closing;  // lexemes, white space between them
  std::string key_head;                       // empty: values have no keys
  bool quoted;                                // a coordinate token stands for characters of a string
};

struct Response {
  const int64_t* ids;  // [num_ids]
  int64_t num_ids;
  const uint8_t* table;  // [offsets[vocabulary]]
  int64_t num_bytes;
  const int64_t* offsets;  // [vocabulary + 1]
  const int64_t* kinds;    // [vocabulary]
  int64_t vocabulary;
};

struct Node {
  int64_t kind, first, last, parent, slot, number;
};

struct Found {
  std::vector<Node> nodes;
  std::vector<int64_t> starts;  // [num_ids + 1]
  std::string text;
  int64_t opening_end = -1;
  Ended ended = Ended::end;
  bool behind = false;
};

// The text of the response, where its tokens start, and their kinds. False if the table does not hold the bytes of some
// id; nothing is read outside of it.
inline bool read_tokens(const Response& response, std::vector<int64_t>& kinds, Found& found) {
  kinds.reserve(response.num_ids);
  found.starts.reserve(response.num_ids + 1);
  found.starts.push_back(0);
  for (int64_t slot = 0; slot < response.num_ids; ++slot) {
    const int64_t id = response.ids[slot];
    const bool known = id >= 0 && id < response.vocabulary;
    kinds.push_back(known ? response.kinds[id] : kSpecial);
    if (known) {
      const int64_t first = response.offsets[id], last = response.offsets[id + 1];
      if (first < 0 || last < first || last > response.num_bytes) {
        return false;
      }
      found.text.append(reinterpret_cast<const char*>(response.table) + first, last - first);
    }
    found.starts.push_back(static_cast<int64_t>(found.text.size()));
  }
  return true;
}

// False as that of `read_tokens`.
bool scan_rollout(const Grammar& grammar, const Response& response, Found& found);
bool scan_lines(size_t num_coordinates, const Response& response, Found& found);

}  // namespace ds_stage2ab::cpu
