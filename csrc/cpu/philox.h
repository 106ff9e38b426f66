// Philox 4x32-10 (Salmon et al. 2011), a counter-based generator: ds_stage2ab/ops/sampling.py has the words.
#pragma once

#include <array>
#include <cstdint>

namespace ds_stage2ab::cpu {

using Block = std::array<uint32_t, 4>;

inline Block philox_block(Block counter, uint32_t key_0, uint32_t key_1) {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product_0 = uint64_t{0xD2511F53} * counter[0], product_1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product_1 >> 32) ^ counter[1] ^ key_0, static_cast<uint32_t>(product_1),
               static_cast<uint32_t>(product_0 >> 32) ^ counter[3] ^ key_1, static_cast<uint32_t>(product_0)};
    key_0 += 0x9E3779B9;
    key_1 += 0xBB67AE85;
  }
  return counter;
}

}  // namespace ds_stage2ab::cpu
