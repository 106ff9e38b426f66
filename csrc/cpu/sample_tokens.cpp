#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>

#include "kernels.h"
#include "philox.h"

namespace ds_stage2ab::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr double kMostNoise = 33 * std::numbers::ln2;
constexpr double kSlack = 1e-6;  // relative and absolute: far above the rounding of a bound

// The noise of a word: -log(-log u) of u = (word + 0.5) / 2^32.
double noise_of(uint32_t word) { return -std::log(-std::log((word + 0.5) * 0x1p-32)); }

// No less than that: -log u >= 1 - u, which is at least the power of two that the zeros before ~word leave.
double bound_of(uint32_t word) { return (std::countl_zero(~word) + 1) * std::numbers::ln2; }

struct Cut {
  double temperature;
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
};

// The smallest of the scores [first, end) such that the larger ones weigh less than `target`; at least the largest.
// A selection by weight: they are parted around one of them, and the search goes on in the part that holds the border.
template <typename Weight>
float nucleus_border(float* first, float* end, float largest, double target, const Weight& weight) {
  float border = largest;
  for (double larger = 0; first < end;) {
    const float pivot = first[(end - first) / 2];
    float* const equal = std::partition(first, end, [pivot](float score) { return score > pivot; });
    double parted = 0;
    for (const float* score = first; score < equal; ++score) {
      parted += weight(*score);
    }
    if (!(larger + parted < target)) {
      end = equal;
      continue;
    }
    border = pivot;
    first = std::partition(equal, end, [pivot](float score) { return score == pivot; });
    larger += parted + static_cast<double>(first - equal) * weight(pivot);
  }
  return border;
}

// The smallest score that may be drawn. `room` [num_ids] is overwritten.
float lowest_candidate(const float* scores, int64_t num_ids, const Cut& cut, float* room) {
  const bool by_rank = cut.top_k > 0 && cut.top_k < num_ids, by_mass = cut.top_p < 1;
  if (!by_rank && !by_mass) {
    return kNone;
  }
  float *const all = room + num_ids, *end = all, lowest = kNone;
  std::transform(scores, scores + num_ids, room, [](float score) { return std::isnan(score) ? kNone : score; });
  if (by_rank) {
    end = room + cut.top_k;
    std::partial_sort(room, end, all, std::greater<>{});
    lowest = end[-1];
  }
  if (!by_mass) {
    return lowest;
  }
  const float largest = by_rank ? *room : *std::max_element(room, all);
  const auto weight = [&](float score) { return std::exp((static_cast<double>(score) - largest) / cut.temperature); };
  double total = 0;
  for (int64_t id = 0; id < num_ids; ++id) {
    total += scores[id] >= lowest ? weight(scores[id]) : 0;
  }
  return nucleus_border(room, end, largest, cut.top_p * total, weight);
}

// The id with the largest score / temperature + noise; most ids cannot reach the best one so far and have no noise made.
int64_t draw(const float* scores, int64_t num_ids, double temperature, float lowest, uint64_t seed, uint32_t position) {
  const uint32_t key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
  double best = -kInfinity;
  int64_t drawn = 0;
  for (int64_t first = 0; first < num_ids; first += 4) {
    const int64_t last = std::min<int64_t>(first + 4, num_ids);
    float most = kNone;
    for (int64_t id = first; id < last; ++id) {
      most = scores[id] >= lowest && scores[id] > most ? scores[id] : most;
    }
    // what must be added to reach the best one, a little less for the rounding
    const double slack = kSlack * (1 + (best == -kInfinity ? 0 : std::abs(best)));
    if (!(most / temperature + kMostNoise >= best - slack)) {
      continue;
    }
    const Block words = philox_block({static_cast<uint32_t>(first / 4), position, 0, 0}, key_0, key_1);
    for (int64_t id = first; id < last; ++id) {
      const uint32_t word = words[id - first];
      const double scaled = scores[id] / temperature;
      if (!(scores[id] >= lowest) || scaled + bound_of(word) < best - slack) {
        continue;
      }
      const double noisy = scaled + noise_of(word);
      if (noisy > best) {
        best = noisy;
        drawn = id;
      }
    }
  }
  return drawn;
}

}  // namespace

void sample_tokens(const float* scores, int64_t num_rows, int64_t num_ids, double temperature, int64_t top_k,
                   double top_p, const int64_t* seeds, const int64_t* positions, float* room, int64_t* drawn) {
  for (int64_t row = 0; row < num_rows; ++row, scores += num_ids) {
    const float lowest = lowest_candidate(scores, num_ids, {temperature, top_k, top_p}, room);
    drawn[row] = draw(scores, num_ids, temperature, lowest, static_cast<uint64_t>(seeds[row]),
                      static_cast<uint32_t>(positions[row]));
  }
}

}  // namespace ds_stage2ab::cpu
