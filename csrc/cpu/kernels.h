// What the CPU dispatch calls: raw pointers to contiguous rows, checked by the caller.
#pragma once

#include <cstdint>

#include "../ragged.h"

namespace ds_stage2ab::cpu {

// ids and mask [num_rows, width] from tokens [N].
void pack_left(const int64_t* tokens, const Ragged& ragged, int64_t pad_id, int64_t* ids, int64_t* mask);

// packed [num_axes, num_rows, width] from positions [num_axes, num_tokens].
void pack_left_positions(const int64_t* positions, int64_t num_axes, int64_t num_tokens, const Ragged& ragged,
                         int64_t* packed);

// lengths and stopped [num_rows] of generated [num_rows, num_columns]; the sum of the lengths.
int64_t response_lengths(const int64_t* generated, int64_t num_rows, int64_t num_columns, int64_t stop_id,
                         int64_t* lengths, bool* stopped);

// tokens [sum of lengths]: the first lengths[row] ids of each row, back to back.
void gather_responses(const int64_t* generated, int64_t num_rows, int64_t num_columns, const int64_t* lengths,
                      int64_t* tokens);

// words [num_blocks, 4] of counters [num_blocks, 4] under keys [num_blocks, 2]: their low 32 bits.
void philox(const int64_t* counters, const int64_t* keys, int64_t num_blocks, int64_t* words);

// drawn [num_rows] from scores [num_rows, num_ids]; `room` [num_ids] is overwritten.
void sample_tokens(const float* scores, int64_t num_rows, int64_t num_ids, double temperature, int64_t top_k,
                   double top_p, const int64_t* seeds, const int64_t* positions, float* room, int64_t* drawn);

}  // namespace ds_stage2ab::cpu
