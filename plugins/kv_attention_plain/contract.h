// KVAttentionPlain in C++: its contract. Sizes and kernels are those of KVAttention.
#pragma once

#include "kv_attention/contract.h"

namespace trtc::kv_attention_plain
{

Contract const& contract();

kv_attention::Sizes sizesOf(Attributes const& attributes, Shapes const& inputs, DType cacheType);

} // namespace trtc::kv_attention_plain
