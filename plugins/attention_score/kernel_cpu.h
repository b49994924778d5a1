// AttentionScore on the CPU: the keys are packed once as panels, then each head takes its rows by blocks: logits of a
// block against all keys, softmax, and the sum over rows, while they are in the cache. One or two rows are not worth
// packing: their logits are plain dot products. A head is one task, so the result does not depend on the threads.
#pragma once

#include <algorithm>
#include <limits>

#include "attention_score/contract.h"
#include "common/half.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "common/softmax.h"
#include "common/tile.h"

namespace trtc::attention_score
{

namespace cpu
{
constexpr int64_t kFEW_ROWS = 2;          //!< that are not worth packing the keys for
constexpr int64_t kTOGETHER = 4;          //!< keys of one dot product of vectors
constexpr int64_t kTASK_VALUES = 1 << 14; //!< about what is worth a task of its own

//! The scratch memory, in floats.
struct Layout
{
    bool isPacked;
    int64_t tileRows;
    int64_t width;     //!< D, with room for whole vectors
    int64_t numPanels; //!< of the keys of one KV head
    int64_t panel;     //!< floats of one, [D, kTILE_COLUMNS]
    int64_t keys;      //!< floats of one row of logits
    int64_t head;      //!< what a head needs: rows of q, the same packed, keys as float32, logits
    int64_t raw;       //!< floats of the scores of one head
    int64_t heads;     //!< where the parts start
    int64_t scores;
    int64_t ends;

    explicit Layout(Sizes const& sizes)
        : isPacked(sizes.usedRows() > kFEW_ROWS)
        , tileRows(tileRowsFor(sizes.usedRows()))
        , width(roundUp(sizes.width, kLANES))
        , numPanels(isPacked ? (sizes.usedKeys() + kTILE_COLUMNS - 1) / kTILE_COLUMNS : 0)
        , panel(sizes.width * kTILE_COLUMNS)
        , keys(roundUp(sizes.usedKeys(), kTILE_COLUMNS))
        , head(roundUp(tileRows * (2 * width + keys) + kTOGETHER * width, 16))
        , raw(roundUp(sizes.span(), kLANES))
        , heads(sizes.batch * sizes.groups * numPanels * panel)
        , scores(heads + sizes.batch * sizes.heads * head)
        , ends(scores + sizes.batch * (sizes.heads + 2 * sizes.parts) * raw)
    {
    }
};

//! kTILE_COLUMNS keys from `first` on, of `used`, transposed; zero beyond the last.
template <typename K>
void packPanel(Sizes const& sizes, K const* k, int64_t first, int64_t used, float* to)
{
    constexpr int64_t kCHUNK = 64;
    int64_t const count = std::min(kTILE_COLUMNS, used - first);
    K const* const from = k + (sizes.firstKey() + first) * sizes.width;
    float chunk[kTILE_COLUMNS][kCHUNK + 1] = {}; // an odd distance: columns then lie in different lines of the cache
    for (int64_t d = 0; d < sizes.width; d += kCHUNK)
    {
        int64_t const depth = std::min(kCHUNK, sizes.width - d);
        for (int64_t j = 0; j < count; ++j)
        {
            toFloats(chunk[j], from + j * sizes.width + d, depth);
        }
        for (int64_t i = 0; i < depth; ++i)
        {
            for (int64_t j = 0; j < kTILE_COLUMNS; ++j)
            {
                to[(d + i) * kTILE_COLUMNS + j] = chunk[j][i];
            }
        }
    }
}

//! Logits of one row with `used` keys, without packed ones. `buffer` has room for kTOGETHER keys, `q` zeros up to whole
//! vectors.
template <typename K>
void dotKeys(
    Sizes const& sizes, Layout const& layout, K const* k, int64_t used, float const* q, float* buffer, float* logits)
{
    std::fill(buffer, buffer + kTOGETHER * layout.width, 0.0F);
    for (int64_t first = 0; first < used; first += kTOGETHER)
    {
        int64_t const count = std::min(kTOGETHER, used - first);
        K const* const from = k + (sizes.firstKey() + first) * sizes.width;
        float const* keys = buffer;
        int64_t stride = layout.width;
        if (std::is_same_v<K, float> && count == kTOGETHER && layout.width == sizes.width)
        {
            keys = reinterpret_cast<float const*>(from);
        }
        else
        {
            for (int64_t j = 0; j < count; ++j)
            {
                toFloats(buffer + j * stride, from + j * sizes.width, sizes.width);
            }
        }
        FloatVector sum[kTOGETHER]{};
        for (int64_t d = 0; d < layout.width; d += kLANES)
        {
            FloatVector const left = load(q + d);
#pragma GCC unroll 4
            for (int64_t j = 0; j < kTOGETHER; ++j)
            {
                sum[j] += left * load(keys + j * stride + d);
            }
        }
        for (int64_t j = 0; j < count; ++j)
        {
            logits[first + j] = sumOf(sum[j]);
        }
    }
}

//! From the logits of one row to its weights, of which the item has `own`.
template <typename Bias>
void finishRow(Sizes const& sizes, Bias const* bias, int64_t item, int64_t head, int64_t row, int64_t position,
    int64_t own, float* logits)
{
    int64_t const used = sizes.usedKeys();
    std::fill(logits + own, logits + used, 0.0F);
    Shape const& shape = sizes.bias;
    int64_t const at =
        ((shape[0] > 1 ? item : 0) * shape[1] + (shape[1] > 1 ? head : 0)) * shape[2] + (shape[2] > 1 ? row : 0);
    if (shape[3] > 1)
    {
        constexpr int64_t kCHUNK = 64;
        float chunk[kCHUNK];
        for (int64_t n = 0; n < used; n += kCHUNK)
        {
            int64_t const count = std::min(kCHUNK, used - n);
            toFloats(chunk, bias + at * shape[3] + sizes.firstKey() + n, count);
            for (int64_t i = 0; i < count; ++i)
            {
                logits[n + i] += chunk[i];
            }
        }
    }
    else
    {
        float const added = toFloat(bias[at]);
        for (int64_t n = 0; n < used; ++n)
        {
            logits[n] += added;
        }
    }
    if (sizes.softmax == Softmax::kNONE)
    {
        std::fill(logits + own, logits + used, 0.0F);
        return;
    }
    int64_t const last = std::min(std::max<int64_t>(position, -1), sizes.numKeys - 1);
    int64_t const seen = sizes.causal ? std::min(std::max<int64_t>(last + 1 - sizes.firstKey(), 0), own) : own;
    softmax(logits, seen);
    std::fill(logits + seen, logits + used, 0.0F);
}

//! Divides the sums over rows as `normalize` says; the item has `keys`.
inline void divideKeys(Sizes const& sizes, int64_t const* position, int64_t keys, float* score)
{
    for (int64_t j = 0; j < sizes.span(); ++j)
    {
        int64_t const key = sizes.start + j;
        int64_t divisor = keys - key;
        if (sizes.normalize == Normalize::kPROBES)
        {
            divisor = 0;
            for (int64_t r = sizes.firstRow(); r < sizes.numRows; ++r)
            {
                divisor += !sizes.causal || key <= position[r] ? 1 : 0;
            }
        }
        score[j] /= static_cast<float>(std::max<int64_t>(divisor, 1));
    }
}

//! The score of each key of the span, by one head.
template <typename Q, typename K, typename Bias>
void scoreHead(Sizes const& sizes, Layout const& layout, Q const* q, K const* k, int64_t const* positions,
    Bias const* bias, OwnKeys const& own, int64_t item, int64_t head, float* scratch)
{
    int64_t const* const position = sizes.positionsOf(positions, item);
    int64_t const ownUsed = sizes.ownUsed(own);
    int64_t const group = item * sizes.groups + head / sizes.headsOfGroup();
    Q const* const rowsOfHead = q + (item * sizes.heads + head) * sizes.numRows * sizes.width;
    float* const plain = scratch + layout.heads + (item * sizes.heads + head) * layout.head;
    float* const packed = plain + layout.tileRows * layout.width;
    float* const buffer = packed + layout.tileRows * layout.width;
    float* const logits = buffer + kTOGETHER * layout.width;
    float* const score = scratch + layout.scores + (item * sizes.heads + head) * layout.raw;
    float const* const panels = scratch + group * layout.numPanels * layout.panel;
    bool const isMaximum = sizes.rows == Rows::kMAXIMUM;
    std::fill(score, score + layout.raw, isMaximum ? -std::numeric_limits<float>::infinity() : 0.0F);
    for (int64_t first = sizes.firstRow(); first < sizes.numRows; first += layout.tileRows)
    {
        int64_t const count = std::min(layout.tileRows, sizes.numRows - first);
        float const* rows[kTILE_ROWS];
        for (int64_t i = 0; i < layout.tileRows; ++i)
        {
            int64_t const used = std::min(i, count - 1); // rows beyond the last repeat it
            float* const row = plain + used * layout.width;
            rows[i] = row;
            if (i < count)
            {
                toFloats(row, rowsOfHead + (first + i) * sizes.width, sizes.width);
                for (int64_t d = 0; d < sizes.width; ++d)
                {
                    row[d] *= sizes.scale;
                }
                std::fill(row + sizes.width, row + layout.width, 0.0F);
            }
        }
        if (layout.isPacked)
        {
            packBlock(layout.tileRows, sizes.width, rows, packed);
            for (int64_t panel = 0; panel * kTILE_COLUMNS < ownUsed; ++panel)
            {
                multiplyTile(layout.tileRows, sizes.width, packed, panels + panel * layout.panel, kTILE_COLUMNS,
                    logits + panel * kTILE_COLUMNS, layout.keys);
            }
        }
        for (int64_t i = 0; i < count; ++i)
        {
            float* const row = logits + i * layout.keys;
            if (!layout.isPacked)
            {
                dotKeys(sizes, layout, k + group * sizes.numKeys * sizes.width, ownUsed, rows[i], buffer, row);
            }
            finishRow(sizes, bias, item, head, first + i, position[first + i], ownUsed, row);
            float const* const inSpan = row + sizes.start - sizes.firstKey();
            for (int64_t j = 0; j < sizes.span(); ++j)
            {
                score[j] = isMaximum ? std::max(score[j], inSpan[j]) : score[j] + inSpan[j];
            }
        }
    }
    if (sizes.rows == Rows::kMEAN)
    {
        for (int64_t j = 0; j < sizes.span(); ++j)
        {
            score[j] /= static_cast<float>(sizes.usedRows());
        }
    }
    if (sizes.normalize != Normalize::kNONE)
    {
        divideKeys(sizes, position, own.keys, score);
    }
}

//! Pooling along the keys, as long as before. What lies outside is 0 in an average, and nothing in a maximum.
inline void pool(bool isMaximum, int64_t width, int64_t count, float const* from, float* to)
{
    for (int64_t j = 0; j < count; ++j)
    {
        int64_t const begin = std::max<int64_t>(j - width / 2, 0);
        int64_t const end = std::min(j + width / 2 + 1, count);
        float value = from[begin];
        for (int64_t i = begin + 1; i < end; ++i)
        {
            value = isMaximum ? std::max(value, from[i]) : value + from[i];
        }
        to[j] = isMaximum ? value : value / static_cast<float>(width);
    }
}

//! One part: pooling of each head, all heads of the part, pooling; the item has `span` keys of the span.
inline void finishPart(
    Sizes const& sizes, Layout const& layout, float* scratch, int64_t item, int64_t part, int64_t span, float* score)
{
    int64_t const heads = sizes.heads / sizes.parts;
    std::fill(score + span, score + sizes.span(), 0.0F);
    float const* const raw = scratch + layout.scores + (item * sizes.heads + part * heads) * layout.raw;
    float* const pooled =
        scratch + layout.scores + (sizes.batch * sizes.heads + 2 * (item * sizes.parts + part)) * layout.raw;
    float* const all = pooled + layout.raw;
    for (int64_t head = 0; head < heads; ++head)
    {
        float const* own = raw + head * layout.raw;
        if (sizes.headKernel > 1)
        {
            pool(sizes.poolMaximum, sizes.headKernel, span, own, pooled);
            own = pooled;
        }
        for (int64_t j = 0; j < span; ++j)
        {
            float const before = head == 0 ? own[j] : all[j];
            float const both = sizes.reduce == Reduce::kMAXIMUM ? std::max(before, own[j]) : before + own[j];
            all[j] = head == 0 ? own[j] : both;
        }
    }
    if (sizes.reduce == Reduce::kMEAN)
    {
        for (int64_t j = 0; j < span; ++j)
        {
            all[j] /= static_cast<float>(heads);
        }
    }
    if (sizes.kernel > 1)
    {
        pool(sizes.poolMaximum, sizes.kernel, span, all, score);
    }
    else
    {
        std::copy(all, all + span, score);
    }
}
} // namespace cpu

inline size_t cpuWorkspaceBytes(Sizes const& sizes)
{
    return static_cast<size_t>(cpu::Layout(sizes).ends) * sizeof(float);
}

//! `q`, `k` and `bias` are of any floating type. Sizes have been checked.
template <typename Q, typename K, typename Bias>
void scoreKeys(Sizes const& sizes, Q const* q, K const* k, int64_t const* position, Bias const* bias,
    int64_t const* length, float* score, void* workspace, ParallelFor const& parallelFor)
{
    cpu::Layout const layout(sizes);
    auto* const scratch = static_cast<float*>(workspace);
    parallelFor(sizes.batch * sizes.groups * layout.numPanels, cpu::kTASK_VALUES / (layout.panel + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const group = i / layout.numPanels;
                int64_t const first = i % layout.numPanels * kTILE_COLUMNS;
                int64_t const used = sizes.ownUsed(sizes.own(length, group / sizes.groups));
                if (first < used)
                {
                    cpu::packPanel(
                        sizes, k + group * sizes.numKeys * sizes.width, first, used, scratch + i * layout.panel);
                }
            }
        });
    int64_t const headFlops = 2 * sizes.usedRows() * sizes.usedKeys() * sizes.width;
    parallelFor(sizes.batch * sizes.heads, (1 << 20) / (headFlops + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const item = i / sizes.heads;
                cpu::scoreHead(
                    sizes, layout, q, k, position, bias, sizes.own(length, item), item, i % sizes.heads, scratch);
            }
        });
    int64_t const partValues = productUpTo(cpu::kTASK_VALUES, sizes.heads / sizes.parts, sizes.span());
    parallelFor(sizes.batch * sizes.parts, cpu::kTASK_VALUES / (partValues + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const item = i / sizes.parts;
                int64_t const span = sizes.own(length, item).span;
                cpu::finishPart(sizes, layout, scratch, item, i % sizes.parts, span, score + i * sizes.span());
            }
        });
}

} // namespace trtc::attention_score
