// The search for the nearest of many vectors. Tokens stand side by side in the lanes, each value of a code goes against
// all of them, and every lane keeps its running best; a few tokens lie in rows instead. Codes are read as they lie in
// memory. All codes sum in the same order for a token, so that equal ones are equally near and ties go by the number,
// and nothing depends on the threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "codebook_encode/contract.h"
#include "common/half.h"
#include "common/parallel.h"
#include "common/simd_math.h"

namespace trtc::codebook_encode::cpu
{

constexpr int64_t kPANEL = 2 * kLANES;               //!< tokens side by side
constexpr int64_t kWIDE_ROWS = kLANES == 16 ? 8 : 4; //!< codes at a time; accumulators fill half of the registers
constexpr int64_t kNARROW_ROWS = 8;                  //!< codes at a time where a code has one accumulator
constexpr int64_t kRANGE = 64;                       //!< codes of a task
constexpr int64_t kPANELS = 8;                       //!< panels of a task
constexpr int64_t kCHUNK = 256;                      //!< values converted at a time
constexpr int64_t kTASK_VALUES = 1 << 14;            //!< about what is worth a task of its own

inline int64_t numPanels(Sizes const& sizes)
{
    return (sizes.numTokens + kPANEL - 1) / kPANEL;
}

inline int64_t numRanges(Sizes const& sizes)
{
    return (sizes.numCodes + kRANGE - 1) / kRANGE;
}

//! How the tokens of a panel lie.
enum class Form
{
    kWIDE,   //!< [D, kPANEL]
    kNARROW, //!< [D, kLANES]
    kROWS,   //!< [token, D rounded up], where so few tokens would leave most lanes empty
};

//! Up to kPANEL tokens that are searched together.
struct Panel
{
    int64_t first; //!< token
    int64_t count;
    Form form;
    float* values;       //!< what is left to code, zero where there is no token or channel
    int64_t tokenStride; //!< from a token's value to the same one of the next
    int64_t depthStride; //!< from a value to the next one of the token
};

//! Scratch memory for vectors.
class Search
{
public:
    Search(Sizes const& sizes, void* workspace)
        : mSizes(sizes)
        , mValues(static_cast<float*>(workspace))
        , mBest(mValues + numPanels(sizes) * panelValues(sizes))
        , mCodes(reinterpret_cast<int32_t*>(mBest + numRanges(sizes) * numPanels(sizes) * kPANEL))
        , mWords(reinterpret_cast<float*>(mCodes + numRanges(sizes) * numPanels(sizes) * kPANEL))
    {
    }

    static int64_t panelValues(Sizes const& sizes)
    {
        return kPANEL * roundUp(sizes.width, kLANES);
    }

    static int64_t values(Sizes const& sizes)
    {
        return numPanels(sizes) * (panelValues(sizes) + 2 * numRanges(sizes) * kPANEL) + sizes.numCodes * sizes.width;
    }

    Panel panel(int64_t index) const
    {
        int64_t const first = index * kPANEL;
        int64_t const count = std::min(kPANEL, mSizes.numTokens - first);
        float* const at = mValues + index * panelValues(mSizes);
        // A product by rows costs a vector operation for kLANES channels and about kREDUCTION more.
        constexpr int64_t kREDUCTION = 8;
        int64_t const padded = roundUp(mSizes.width, kLANES);
        if (count <= kLANES && count * (padded / kLANES + kREDUCTION) < mSizes.width)
        {
            return {first, count, Form::kROWS, at, padded, 1};
        }
        return count <= kLANES ? Panel{first, count, Form::kNARROW, at, 1, kLANES}
                               : Panel{first, count, Form::kWIDE, at, 1, kPANEL};
    }

    //! How near the nearest code of a range is to a token of a panel, and its number.
    float* best(int64_t range, int64_t panel) const
    {
        return mBest + (range * numPanels(mSizes) + panel) * kPANEL;
    }

    int32_t* codes(int64_t range, int64_t panel) const
    {
        return mCodes + (range * numPanels(mSizes) + panel) * kPANEL;
    }

    //! [K, D], the codes of one stage, where they are not float32 already.
    float* words() const
    {
        return mWords;
    }

private:
    Sizes const& mSizes;
    float* mValues;
    float* mBest;
    int32_t* mCodes;
    float* mWords;
};

template <typename T>
void packTokens(Sizes const& sizes, T const* x, Panel const& panel)
{
    std::fill(panel.values, panel.values + Search::panelValues(sizes), 0.0F);
    float chunk[kCHUNK];
    for (int64_t token = 0; token < panel.count; ++token)
    {
        T const* const row = x + (panel.first + token) * sizes.width;
        for (int64_t d = 0; d < sizes.width; d += kCHUNK)
        {
            int64_t const number = std::min(kCHUNK, sizes.width - d);
            toFloats(chunk, row + d, number);
            for (int64_t i = 0; i < number; ++i)
            {
                panel.values[token * panel.tokenStride + (d + i) * panel.depthStride] = chunk[i];
            }
        }
    }
}

//! The vector from `d` on, zero beyond the end of the row.
inline FloatVector loadPart(float const* row, int64_t d, int64_t width)
{
    FloatVector vector{};
    std::memcpy(&vector, row + d, static_cast<size_t>(std::min<int64_t>(kLANES, width - d)) * sizeof(float));
    return vector;
}

inline float halfSquare(float const* word, int64_t width)
{
    FloatVector sums{};
    int64_t d = 0;
    for (; d + kLANES <= width; d += kLANES)
    {
        FloatVector const part = load(word + d);
        sums += part * part;
    }
    if (d < width)
    {
        FloatVector const part = loadPart(word, d, width);
        sums += part * part;
    }
    return 0.5F * sumOf(sums);
}

//! Codes `begin` to `end` of one stage.
struct Range
{
    float const* words;       //!< of the stage
    float const* halfSquares; //!< of code `begin` and those after it
    int64_t begin;
    int64_t end;
};

//! The nearest code of a range for tokens that lie side by side. kVECTORS of them, kROWS codes at a time.
template <int64_t kVECTORS, int64_t kROWS>
void searchLanes(int64_t width, Range const& range, float const* tokens, float* bestOfTokens, int32_t* codeOfTokens)
{
    FloatVector best[kVECTORS];
    IntVector code[kVECTORS]{};
    for (int64_t v = 0; v < kVECTORS; ++v)
    {
        best[v] = broadcast(-std::numeric_limits<float>::infinity());
    }
    for (int64_t first = range.begin; first < range.end; first += kROWS)
    {
        float const* row[kROWS];
        FloatVector sum[kROWS][kVECTORS]{};
        for (int64_t i = 0; i < kROWS; ++i)
        {
            row[i] = range.words + std::min(first + i, range.end - 1) * width;
        }
        for (int64_t d = 0; d < width; ++d)
        {
            FloatVector token[kVECTORS];
#pragma GCC unroll 2
            for (int64_t v = 0; v < kVECTORS; ++v)
            {
                token[v] = load(tokens + (d * kVECTORS + v) * kLANES);
            }
#pragma GCC unroll 8
            for (int64_t i = 0; i < kROWS; ++i)
            {
                FloatVector const value = broadcast(row[i][d]);
#pragma GCC unroll 2
                for (int64_t v = 0; v < kVECTORS; ++v)
                {
                    sum[i][v] += value * token[v];
                }
            }
        }
        for (int64_t i = 0; i < kROWS; ++i)
        {
            // Only a nearer one replaces the best, so that of equal ones the first stays; the last row may come again.
            int64_t const number = std::min(first + i, range.end - 1);
            for (int64_t v = 0; v < kVECTORS; ++v)
            {
                FloatVector const nearness = sum[i][v] - range.halfSquares[number - range.begin];
                IntVector const better = nearness > best[v];
                best[v] = better ? nearness : best[v];
                code[v] = better ? broadcast(static_cast<int32_t>(number)) : code[v];
            }
        }
    }
    std::memcpy(bestOfTokens, best, sizeof(best));
    std::memcpy(codeOfTokens, code, sizeof(code));
}

//! The nearest code of a range for kTOKENS tokens that lie in rows, so many codes at a time that there are kLANES
//! products.
template <int64_t kTOKENS>
void searchRows(int64_t width, Range const& range, float const* tokens, float* best, int32_t* code)
{
    constexpr int64_t kCODES = kLANES / kTOKENS;
    int64_t const padded = roundUp(width, kLANES);
    std::fill(best, best + kTOKENS, -std::numeric_limits<float>::infinity());
    std::fill(code, code + kTOKENS, 0);
    for (int64_t first = range.begin; first < range.end; first += kCODES)
    {
        float const* row[kCODES];
        FloatVector sum[kCODES * kTOKENS]{};
        for (int64_t i = 0; i < kCODES; ++i)
        {
            row[i] = range.words + std::min(first + i, range.end - 1) * width;
        }
        auto const add = [&](int64_t d, auto const& loadWord)
        {
            FloatVector token[kTOKENS];
#pragma GCC unroll 4
            for (int64_t t = 0; t < kTOKENS; ++t)
            {
                token[t] = load(tokens + t * padded + d);
            }
#pragma GCC unroll 16
            for (int64_t i = 0; i < kCODES; ++i)
            {
                FloatVector const value = loadWord(row[i]);
#pragma GCC unroll 4
                for (int64_t t = 0; t < kTOKENS; ++t)
                {
                    sum[i * kTOKENS + t] += value * token[t];
                }
            }
        };
        int64_t d = 0;
        for (; d + kLANES <= width; d += kLANES)
        {
            add(d, [&](float const* word) { return load(word + d); });
        }
        if (d < width)
        {
            add(d, [&](float const* word) { return loadPart(word, d, width); });
        }
        FloatVector const products = sumsOf(sum);
        for (int64_t i = 0; i < kCODES; ++i)
        {
            int64_t const number = std::min(first + i, range.end - 1);
            for (int64_t t = 0; t < kTOKENS; ++t)
            {
                float const nearness = products[i * kTOKENS + t] - range.halfSquares[number - range.begin];
                code[t] = nearness > best[t] ? static_cast<int32_t>(number) : code[t];
                best[t] = std::max(best[t], nearness);
            }
        }
    }
}

inline void searchPanel(int64_t width, Range const& range, Panel const& panel, float* best, int32_t* code)
{
    if (panel.form == Form::kWIDE)
    {
        searchLanes<2, kWIDE_ROWS>(width, range, panel.values, best, code);
        return;
    }
    if (panel.form == Form::kNARROW)
    {
        searchLanes<1, kNARROW_ROWS>(width, range, panel.values, best, code);
        return;
    }
    int64_t t = 0;
    for (; t + 4 <= panel.count; t += 4)
    {
        searchRows<4>(width, range, panel.values + t * panel.tokenStride, best + t, code + t);
    }
    for (; t < panel.count; ++t)
    {
        searchRows<1>(width, range, panel.values + t * panel.tokenStride, best + t, code + t);
    }
}

//! From the ranges' best the best of all for one panel; then takes the codes off what is left of the tokens.
inline void finishPanel(
    Sizes const& sizes, Search const& search, float const* words, int64_t stage, int64_t index, int64_t* code)
{
    int64_t const width = sizes.width;
    Panel const panel = search.panel(index);
    float const* row[kPANEL];
    for (int64_t token = 0; token < panel.count; ++token)
    {
        float best = search.best(0, index)[token];
        int32_t found = search.codes(0, index)[token];
        for (int64_t range = 1; range < numRanges(sizes); ++range)
        {
            float const other = search.best(range, index)[token];
            found = other > best ? search.codes(range, index)[token] : found;
            best = std::max(best, other);
        }
        code[(panel.first + token) * sizes.stages + stage] = found;
        row[token] = words + found * width;
    }
    if (stage + 1 == sizes.stages)
    {
        return;
    }
    // The inner loop is the one whose values are neighbours.
    bool const isRows = panel.form == Form::kROWS;
    for (int64_t outer = 0; outer < (isRows ? panel.count : width); ++outer)
    {
        for (int64_t inner = 0; inner < (isRows ? width : panel.count); ++inner)
        {
            int64_t const token = isRows ? outer : inner;
            int64_t const d = isRows ? inner : outer;
            panel.values[token * panel.tokenStride + d * panel.depthStride] -= row[token][d];
        }
    }
}

template <typename T>
void encodeVectors(Sizes const& sizes, T const* x, void const* codebook, DType codebookType, int64_t* code,
    void* workspace, ParallelFor const& parallelFor)
{
    Search const search(sizes, workspace);
    int64_t const width = sizes.width;
    int64_t const panels = numPanels(sizes);
    int64_t const panelGrain = kTASK_VALUES / productUpTo(kTASK_VALUES, kPANEL, width + 1) + 1;
    parallelFor(panels, panelGrain,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t panel = begin; panel < end; ++panel)
            {
                packTokens(sizes, x, search.panel(panel));
            }
        });
    int64_t const groups = (panels + kPANELS - 1) / kPANELS;
    for (int64_t stage = 0; stage < sizes.stages; ++stage)
    {
        int64_t const start = stage * sizes.numCodes * width;
        float const* words = static_cast<float const*>(codebook) + start;
        if (codebookType != DType::kFLOAT32)
        {
            words = search.words();
            parallelFor(sizes.numCodes * width, kTASK_VALUES,
                [&](int64_t begin, int64_t end)
                {
                    dispatchFloat(codebookType,
                        [&](auto tag)
                        {
                            using Word = typename decltype(tag)::Type;
                            auto const* const from = static_cast<Word const*>(codebook) + start;
                            toFloats(search.words() + begin, from + begin, end - begin);
                        });
                });
        }
        int64_t const work = kRANGE * (std::min(sizes.numTokens, kPANEL * kPANELS) + kLANES) * (width + 1);
        parallelFor(numRanges(sizes) * groups, kTASK_VALUES * kLANES * kLANES / work + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t task = begin; task < end; ++task)
                {
                    int64_t const index = task / groups;
                    int64_t const first = index * kRANGE;
                    int64_t const group = task % groups * kPANELS;
                    float halfSquares[kRANGE];
                    Range const range{words, halfSquares, first, std::min(first + kRANGE, sizes.numCodes)};
                    for (int64_t i = first; i < range.end; ++i)
                    {
                        halfSquares[i - first] = halfSquare(words + i * width, width);
                    }
                    for (int64_t panel = group; panel < std::min(group + kPANELS, panels); ++panel)
                    {
                        searchPanel(
                            width, range, search.panel(panel), search.best(index, panel), search.codes(index, panel));
                    }
                }
            });
        parallelFor(panels, panelGrain,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t panel = begin; panel < end; ++panel)
                {
                    finishPanel(sizes, search, words, stage, panel, code);
                }
            });
    }
}

} // namespace trtc::codebook_encode::cpu
