#include "philox.h"

#include "kernels.h"

namespace ds_stage2ab::cpu {

void philox(const int64_t* counters, const int64_t* keys, int64_t num_blocks, int64_t* words) {
  for (int64_t block = 0; block < num_blocks; ++block) {
    Block counter;
    for (int place = 0; place < 4; ++place) {
      counter[place] = static_cast<uint32_t>(counters[4 * block + place]);
    }
    const uint32_t key_0 = static_cast<uint32_t>(keys[2 * block]), key_1 = static_cast<uint32_t>(keys[2 * block + 1]);
    const Block found = philox_block(counter, key_0, key_1);
    for (int place = 0; place < 4; ++place) {
      words[4 * block + place] = found[place];
    }
  }
}

}  // namespace ds_stage2ab::cpu
