// What the CPU dispatch calls: raw pointers to contiguous rows, checked by the caller.
#pragma once

#include <cstdint>

namespace ds_stage2ab::cpu {

// drawn [num_rows] from scores [num_rows, num_ids]; `room` [num_ids] is overwritten.
void sample_tokens(const float* scores, int64_t num_rows, int64_t num_ids, double temperature, int64_t top_k,
                   double top_p, const int64_t* seeds, const int64_t* positions, float* room, int64_t* drawn);

struct SlotHeads {
  int64_t num_keys;    // key heads
  int64_t num_groups;  // query heads of each
  int64_t width;
};

// out, like queries [num_queries, num_keys * num_groups, width], from keys and values [lines, num_keys, width], of which
// a query sees `lengths` lines from `first` on; `room` [num_groups, the longest length] is overwritten.
void attend_slots(const float* queries, int64_t num_queries, const SlotHeads& heads, const float* keys,
                  const float* values, const int64_t* first, const int64_t* lengths, float scale, float* room,
                  float* out);

}  // namespace ds_stage2ab::cpu
