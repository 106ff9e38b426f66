// The schema of every op, and what runs on the CPU. The meaning of each op stands in ds_stage2ab/ops/reference.py.
//
// No pybind and no PyInit: Python loads the library and finds the ops under torch.ops. This is the only file that
// includes torch, because that is what takes the time.

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <sstream>
#include <tuple>

#include "cpu/kernels.h"
#include "cpu/scan.h"

namespace ds_stage2ab {
namespace {

using at::Tensor;

void check_tensor(const char* name, const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kLong && tensor.dim() == 1, name, " must be int64 with 1 axis, not ",
                    c10::getDtypeNames(tensor.scalar_type()).first, " with ", tensor.dim());
}

Tensor sample_tokens(const Tensor& scores, double temperature, int64_t top_k, double top_p, const Tensor& seeds,
                     const Tensor& positions) {
  TORCH_CHECK_VALUE(scores.scalar_type() == at::kFloat && scores.dim() == 2 && scores.size(1) > 0,
                    "scores must be float32 with 2 axes, the second of at least one id");
  const int64_t num_rows = scores.size(0), num_ids = scores.size(1);
  const auto check = [num_rows](const char* name, const Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == at::kLong && tensor.dim() == 1 && tensor.size(0) == num_rows, name,
                      " must be int64, one for each row of the scores");
  };
  check("seeds", seeds);
  check("positions", positions);
  TORCH_CHECK_VALUE(temperature > 0, "temperature must be above 0: greedy rows are not drawn");
  TORCH_CHECK_VALUE(top_k >= 0 && 0 <= top_p && top_p <= 1, "top_k must not be negative, and top_p in [0, 1]");
  const Tensor rows = scores.contiguous(), seed = seeds.contiguous(), position = positions.contiguous();
  Tensor room = rows.new_empty({num_ids}), drawn = seed.new_empty({num_rows});
  cpu::sample_tokens(rows.const_data_ptr<float>(), num_rows, num_ids, temperature, top_k, top_p,
                     seed.const_data_ptr<int64_t>(), position.const_data_ptr<int64_t>(),
                     room.mutable_data_ptr<float>(), drawn.mutable_data_ptr<int64_t>());
  return drawn;
}

Tensor attend_slots(const Tensor& queries, const Tensor& keys, const Tensor& values, const Tensor& first,
                    const Tensor& lengths, double scale) {
  const auto check_heads = [](const char* name, const Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == at::kFloat && tensor.dim() == 3 && tensor.size(1) > 0, name,
                      " must be float32 with 3 axes, the second of at least one head");
  };
  check_heads("queries", queries);
  check_heads("keys", keys);
  check_heads("values", values);
  const int64_t num_queries = queries.size(0), num_heads = queries.size(1), num_keys = keys.size(1);
  TORCH_CHECK_VALUE(keys.sizes() == values.sizes() && keys.size(2) == queries.size(2) && num_heads % num_keys == 0,
                    "keys and values must be alike, as wide as the queries, with a head for so many query heads each");
  const auto check = [num_queries](const char* name, const Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == at::kLong && tensor.dim() == 1 && tensor.size(0) == num_queries, name,
                      " must be int64, one for each query");
  };
  check("first", first);
  check("lengths", lengths);
  const Tensor query = queries.contiguous(), key = keys.contiguous(), value = values.contiguous();
  const Tensor begin = first.contiguous(), length = lengths.contiguous();
  const int64_t *begins = begin.const_data_ptr<int64_t>(), *seen = length.const_data_ptr<int64_t>();
  int64_t longest = 0;
  for (int64_t one = 0; one < num_queries; ++one) {
    TORCH_CHECK_VALUE(begins[one] >= 0 && seen[one] > 0 && begins[one] <= keys.size(0) - seen[one],
                      "each query must see a line at least, and lines that are there");
    longest = std::max(longest, seen[one]);
  }
  const cpu::SlotHeads heads{num_keys, num_heads / num_keys, queries.size(2)};
  Tensor room = query.new_empty({num_heads * longest}), out = query.new_empty(query.sizes());
  cpu::attend_slots(query.const_data_ptr<float>(), num_queries, heads, key.const_data_ptr<float>(),
                    value.const_data_ptr<float>(), begins, seen, static_cast<float>(scale),
                    room.mutable_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

std::vector<std::string> lexemes_of(const std::string& words) {
  std::istringstream stream(words);
  std::vector<std::string> lexemes;
  for (std::string lexeme; stream >> lexeme;) {
    lexemes.push_back(lexeme);
  }
  return lexemes;
}

// The tensors of a vocabulary, as long as what points into them.
struct Tokens {
  Tensor ids, bytes, bounds, kind;

  Tokens(const Tensor& token_ids, const Tensor& table, const Tensor& offsets, const Tensor& kinds) {
    check_tensor("token_ids", token_ids);
    check_tensor("offsets", offsets);
    check_tensor("kinds", kinds);
    TORCH_CHECK_VALUE(table.scalar_type() == at::kByte && table.dim() == 1 && offsets.size(0) == kinds.size(0) + 1,
                      "table must be uint8 with 1 axis, and offsets one longer than kinds");
    ids = token_ids.contiguous();
    bytes = table.contiguous();
    bounds = offsets.contiguous();
    kind = kinds.contiguous();
  }

  cpu::Response response() const {
    return {ids.const_data_ptr<int64_t>(),    ids.size(0),
            bytes.const_data_ptr<uint8_t>(),  bytes.size(0),
            bounds.const_data_ptr<int64_t>(), kind.const_data_ptr<int64_t>(), kind.size(0)};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> tensors_of(const cpu::Found& found, bool fits, const Tokens& tokens) {
  const Tensor &ids = tokens.ids, &bytes = tokens.bytes;
  TORCH_CHECK_VALUE(fits, "offsets must ascend from 0 to ", bytes.size(0), ", the number of bytes");
  Tensor nodes = ids.new_empty({static_cast<int64_t>(found.nodes.size()), 6});
  Tensor text = bytes.new_empty({static_cast<int64_t>(found.text.size())});
  Tensor starts = ids.new_empty({static_cast<int64_t>(found.starts.size())}), summary = ids.new_empty({3});
  std::copy_n(reinterpret_cast<const int64_t*>(found.nodes.data()), nodes.numel(), nodes.mutable_data_ptr<int64_t>());
  std::copy(found.text.begin(), found.text.end(), text.mutable_data_ptr<uint8_t>());
  std::copy(found.starts.begin(), found.starts.end(), starts.mutable_data_ptr<int64_t>());
  int64_t* told = summary.mutable_data_ptr<int64_t>();
  told[0] = found.opening_end;
  told[1] = static_cast<int64_t>(found.ended);
  told[2] = found.behind;
  return {nodes, text, starts, summary};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scan_rollout(const Tensor& token_ids, const Tensor& table,
                                                        const Tensor& offsets, const Tensor& kinds, std::string opening,
                                                        std::string closing, std::string key_head, bool quoted) {
  const Tokens tokens(token_ids, table, offsets, kinds);
  const cpu::Grammar grammar{lexemes_of(opening), lexemes_of(closing), key_head, quoted};
  TORCH_CHECK_VALUE(!grammar.opening.empty() && !grammar.closing.empty(), "opening and closing must hold a lexeme each");
  cpu::Found found;
  const bool fits = cpu::scan_rollout(grammar, tokens.response(), found);
  return tensors_of(found, fits, tokens);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scan_lines(const Tensor& token_ids, const Tensor& table,
                                                      const Tensor& offsets, const Tensor& kinds,
                                                      int64_t num_coordinates) {
  const Tokens tokens(token_ids, table, offsets, kinds);
  TORCH_CHECK_VALUE(num_coordinates > 0, "num_coordinates must be positive");
  cpu::Found found;
  const bool fits = cpu::scan_lines(static_cast<size_t>(num_coordinates), tokens.response(), found);
  return tensors_of(found, fits, tokens);
}

}  // namespace
}  // namespace ds_stage2ab

TORCH_LIBRARY(ds_stage2ab, library) {
  library.def(
      "scan_rollout(Tensor token_ids, Tensor table, Tensor offsets, Tensor kinds, str opening, str closing, "
      "str key_head, bool quoted) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "scan_lines(Tensor token_ids, Tensor table, Tensor offsets, Tensor kinds, SymInt num_coordinates) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "sample_tokens(Tensor scores, float temperature, SymInt top_k, float top_p, Tensor seeds, Tensor positions) -> "
      "Tensor");
  library.def(
      "attend_slots(Tensor queries, Tensor keys, Tensor values, Tensor first, Tensor lengths, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(ds_stage2ab, CPU, library) {
  library.impl("scan_rollout", ds_stage2ab::scan_rollout);
  library.impl("scan_lines", ds_stage2ab::scan_lines);
  library.impl("sample_tokens", ds_stage2ab::sample_tokens);
  library.impl("attend_slots", ds_stage2ab::attend_slots);
}
