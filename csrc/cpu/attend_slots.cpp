#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

// The compiler makes the function for wider registers too; the processor takes the widest of them that it has.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define DS_STAGE2AB_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DS_STAGE2AB_WIDE
#endif
#define DS_STAGE2AB_INSIDE inline __attribute__((always_inline))

namespace ds_stage2ab::cpu {
namespace {

constexpr int64_t kLanes = 16;
// Numbers side by side; a register of each processor holds them all, or a part.
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

DS_STAGE2AB_INSIDE const Lanes& lanes_at(const float* first) { return *reinterpret_cast<const Lanes*>(first); }
DS_STAGE2AB_INSIDE Lanes& lanes_at(float* first) { return *reinterpret_cast<Lanes*>(first); }

DS_STAGE2AB_INSIDE float product(const float* left, const float* right, int64_t width) {
  Lanes sums = {};
  int64_t at = 0;
  for (; at + kLanes <= width; at += kLanes) {
    sums += lanes_at(left + at) * lanes_at(right + at);
  }
  float sum = 0;
  for (; at < width; ++at) {
    sum += left[at] * right[at];
  }
  typedef float Half __attribute__((vector_size(sizeof(Lanes) / 2)));
  typedef float Quarter __attribute__((vector_size(sizeof(Lanes) / 4)));
  Half halves[2];
  std::memcpy(halves, &sums, sizeof sums);
  halves[0] += halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, halves, sizeof quarters);
  quarters[0] += quarters[1];
  return sum + ((quarters[0][0] + quarters[0][2]) + (quarters[0][1] + quarters[0][3]));
}

// sums += share * row
DS_STAGE2AB_INSIDE void add(float share, const float* row, int64_t width, float* sums) {
  int64_t at = 0;
  for (; at + kLanes <= width; at += kLanes) {
    lanes_at(sums + at) += share * lanes_at(row + at);
  }
  for (; at < width; ++at) {
    sums[at] += share * row[at];
  }
}

// scores -> their softmax, in place.
DS_STAGE2AB_INSIDE void softmax(float* scores, int64_t length) {
  const float largest = *std::max_element(scores, scores + length);
  float sum = 0;
  for (int64_t at = 0; at < length; ++at) {
    scores[at] = std::exp(scores[at] - largest);
    sum += scores[at];
  }
  for (int64_t at = 0; at < length; ++at) {
    scores[at] /= sum;
  }
}

}  // namespace

DS_STAGE2AB_WIDE
void attend_slots(const float* queries, int64_t num_queries, const SlotHeads& heads, const float* keys,
                  const float* values, const int64_t* first, const int64_t* lengths, float scale, float* room,
                  float* out) {
  const int64_t width = heads.width, line = heads.num_keys * width, num_heads = heads.num_keys * heads.num_groups;
  for (int64_t query = 0; query < num_queries; ++query) {
    const int64_t length = lengths[query];
    const float* key = keys + first[query] * line;
    for (int64_t at = 0; at < length; ++at) {
      for (int64_t head = 0; head < num_heads; key += width) {
        for (const int64_t end = head + heads.num_groups; head < end; ++head) {
          room[head * length + at] = scale * product(queries + head * width, key, width);
        }
      }
    }
    for (int64_t head = 0; head < num_heads; ++head) {
      softmax(room + head * length, length);
    }
    std::fill(out, out + num_heads * width, 0.0f);
    const float* value = values + first[query] * line;
    for (int64_t at = 0; at < length; ++at) {
      for (int64_t head = 0; head < num_heads; value += width) {
        for (const int64_t end = head + heads.num_groups; head < end; ++head) {
          add(room[head * length + at], value, width, out + head * width);
        }
      }
    }
    queries += num_heads * width;
    out += num_heads * width;
  }
}

}  // namespace ds_stage2ab::cpu
