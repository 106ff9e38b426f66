// What the scan of a response takes and gives; the words are those of ds_stage2ab/ops/scan.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ds_stage2ab::cpu {

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

// False if the table does not hold the bytes of some id; nothing is read outside of it.
bool scan_rollout(const Grammar& grammar, const Response& response, Found& found);

}  // namespace ds_stage2ab::cpu
