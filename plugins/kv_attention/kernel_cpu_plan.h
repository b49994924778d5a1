// KVAttention on the CPU: the tensors, how a side of the cache lies in vectors, how the work is cut, scratch memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/simd_math.h"
#include "kv_attention/contract.h"

namespace trtc::kv_attention
{

namespace cpu
{
constexpr int64_t kCHUNK = 512;        //!< slots whose weights are there at a time
constexpr int64_t kWIDE_CHUNK = 256;   //!< the same where many queries share a task
constexpr int64_t kTILE = 64;          //!< slots whose values are summed before they join the sum of the split
constexpr int64_t kBLOCK = 4;          //!< queries that share one pass over the codes
constexpr int64_t kUNIT = 16;          //!< queries of one task
constexpr int64_t kSPLIT = 1024;       //!< slots that are worth a task of their own
constexpr int64_t kENOUGH = 128;       //!< tasks beyond which a cache is not cut further
constexpr int64_t kWIDE_ENOUGH = 32;   //!< the same where many queries share a task
constexpr int64_t kWIDE_UNIT = 96;     //!< queries of a task where there are many, about
constexpr int64_t kMANY = 16;          //!< queries of a KV head from which it is worth to turn keys around
constexpr int64_t kMANY_OF_CODES = 32; //!< the same where codes are made floats for it
constexpr int64_t kPIECES = 64;        //!< pieces with scratch memory of their own
constexpr float kLOWEST = -3.0e38F;    //!< stands for the maximum of nothing
//! Kinds of rows, beside the bits of codes.
constexpr int32_t kFLOAT = 32;
constexpr int32_t kHALF = 16;
constexpr int32_t kBFLOAT = 17;
constexpr int32_t kMADE = 64; //!< floats that were made of codes, padded to whole vectors

//! One side of the cache.
struct Cache
{
    void const* rows;
    void const* scale;
    void const* minimum;
    DType scaleType;
};

//! What is added to the rows of a side; not read unless LowRank::rank is more than 0.
struct Factors
{
    void const* factor;
    void const* basis;
    DType type; //!< float32 or float16
};

struct Tensors
{
    void const* q;
    DType type;
    Cache keys;
    Cache values;
    int64_t const* length;
    void const* bias;
    DType biasType;
    int64_t const* index;
    void* y;
    float* lse;
    Factors keyFactors{};
    Factors valueFactors{};
    float const* rope{nullptr}; //!< not read unless Turning::channels is more than 0
};

//! How the codes of one side lie in vectors: every part of a row is padded to whole vectors.
struct Side
{
    kv::Format format;
    int32_t kind; //!< of rows
    bool isCut;   //!< groups of channels cut vectors, or rows are turned: they become floats first, a tile at a time
    int64_t parts;
    int64_t width;  //!< elements of a part of a row
    int64_t blocks; //!< vectors of a part
    int64_t padded; //!< floats of a row

    Side(kv::Format const& given, DType rowType, bool isTurned)
        : format(given)
        , kind(rowType == DType::kBFLOAT16 ? kBFLOAT : given.bits)
        , isCut(isTurned)
        , parts(given.parts())
        , width(given.width / given.parts())
        , blocks(roundUp(width, kLANES) / kLANES)
        , padded(parts * blocks * kLANES)
    {
        for (int64_t i = 0; given.byToken && !given.isFloat() && i < parts * blocks; ++i)
        {
            int64_t const first = i / blocks * width + i % blocks * kLANES;
            int64_t const last = i / blocks * width + std::min((i % blocks + 1) * kLANES, width) - 1;
            isCut = isCut || first / given.group != last / given.group;
        }
        if (isCut)
        {
            parts = 1;
            width = given.width;
            blocks = roundUp(width, kLANES) / kLANES;
            padded = blocks * kLANES;
        }
    }

    //! Groups of one token whose scales are applied there.
    int64_t groups() const noexcept
    {
        return format.byToken && !format.isFloat() ? format.scaleColumns() : 1;
    }

    //! Whether a tile lies in the cache as vectors of floats do.
    bool isReady() const noexcept
    {
        return kind == kFLOAT && width == padded;
    }

    //! The same rows once they were made floats: all parts are one, of whole vectors.
    Side made() const noexcept
    {
        Side one = *this;
        one.parts = 1;
        one.width = padded;
        one.blocks = padded / kLANES;
        return one;
    }

    int64_t groupOf(int64_t part, int64_t block) const noexcept
    {
        return (part * width + block * kLANES) / format.group;
    }
};

struct Plan
{
    Sizes sizes;
    Side keys;
    Side values;
    bool isWide;         //!< so many queries that products are made in blocks
    int64_t chunk;       //!< slots whose weights are there at a time
    int64_t unitQueries; //!< isWide: of T, those of a task, for all query heads of a KV head
    int64_t unitRows;    //!< queries of a task, over heads
    int64_t rowUnits;    //!< tasks of one KV head, but for its splits
    int64_t units;       //!< of all KV heads
    int64_t splits;
    int64_t grain; //!< tasks of a piece
    int64_t pieces;
    int64_t partFloats; //!< what a split leaves: maxima, sums, and weighted sums of values
    int64_t scratchFloats;

    explicit Plan(Sizes const& given)
        : sizes(given)
        , keys(given.keys, given.rowType, given.turning.channels > 0)
        , values(given.values, given.rowType, false)
        , isWide(given.rows() >= (given.keys.isFloat() ? kMANY : kMANY_OF_CODES))
        , chunk(isWide ? kWIDE_CHUNK : kCHUNK)
        , unitQueries(0)
    {
        int64_t const rows = std::max<int64_t>(sizes.rows(), 1);
        unitRows = std::min(rows, kUNIT);
        rowUnits = (rows + unitRows - 1) / unitRows;
        if (isWide)
        {
            // Few units read a long cache less often; many leave out more of what is masked in a short one.
            int64_t const wanted = sizes.columns > 2 * sizes.queries ? 2 * kWIDE_UNIT : kWIDE_UNIT;
            int64_t const most = std::max<int64_t>(wanted / sizes.repeats(), 1);
            rowUnits = (sizes.queries + most - 1) / most;
            unitQueries = (sizes.queries + rowUnits - 1) / rowUnits;
            unitRows = unitQueries * sizes.repeats();
        }
        units = sizes.batch * sizes.kvHeads * rowUnits;
        int64_t const useful = (sizes.columns + kSPLIT - 1) / kSPLIT;
        int64_t const enough = isWide ? kWIDE_ENOUGH : kENOUGH;
        int64_t const wanted = (enough + units - 1) / std::max<int64_t>(units, 1);
        splits = std::max<int64_t>(std::min(useful, wanted), 1);
        grain = (units * splits + kPIECES - 1) / kPIECES;
        grain = std::max<int64_t>(grain, 1);
        pieces = (units * splits + grain - 1) / grain;
        partFloats = unitRows * (values.padded + 2);
        scratchFloats = Scratch(*this, nullptr).size;
    }

    //! Queries of a task, over heads.
    int64_t rowsOf(int64_t rowUnit) const noexcept
    {
        return isWide ? std::min(unitQueries, sizes.queries - rowUnit * unitQueries) * sizes.repeats()
                      : std::min(unitRows, sizes.rows() - rowUnit * unitRows);
    }

    //! The place of a task's row among the rows of its KV head, which are ordered by head, then by T.
    int64_t placeOf(int64_t rowUnit, int64_t row) const noexcept
    {
        if (!isWide)
        {
            return rowUnit * unitRows + row;
        }
        int64_t const count = std::min(unitQueries, sizes.queries - rowUnit * unitQueries);
        return row / count * sizes.queries + rowUnit * unitQueries + row % count;
    }

    //! The memory of one piece.
    struct Scratch
    {
        float* q;             //!< [unitRows, keys.padded]
        float* scaledQ;       //!< the same
        float* constants;     //!< [unitRows], what the minima of the keys add
        float* logits;        //!< [unitRows, chunk], then weights
        float* bias;          //!< [chunk]
        float* scale;         //!< of a tile of tokens, or of a row of channels
        float* minimum;       //!< the same
        float* turned;        //!< of a tile of tokens, by group
        float* weights;       //!< [groups, kBLOCK, kTILE], with the scales of the values in them
        float* starts;        //!< [groups, kBLOCK], what the minima of the values add
        float* rows;          //!< [kTILE, padded], of rows that are made floats first
        char* taken;          //!< [kTILE, bytes of a row], chosen rows as they lie in the cache
        float* turnedRows;    //!< [keys.padded, kTILE], isWide
        float* factors;       //!< [rank, kTILE], of a run of slots
        float* factorRows;    //!< [kTILE, rank], the same as they lie in memory
        float* basis;         //!< [rank, padded], of their block
        int32_t* keyGroups;   //!< [parts, blocks]
        int32_t* valueGroups; //!< [parts, blocks]
        int64_t size;

        Scratch(Plan const& plan, float* at)
            : size(0)
        {
            Side const& k = plan.keys;
            Side const& v = plan.values;
            int64_t const scales = std::max({kTILE * k.groups(), kTILE * v.groups(), k.padded, v.padded});
            int64_t const keysMade = k.isCut || plan.isWide ? k.padded : 0;
            int64_t const valuesMade = v.isCut || (plan.isWide && !v.isReady()) ? v.padded : 0;
            bool const isScaled = !plan.isWide && !k.format.byToken && !k.isCut;
            int64_t const keyRank = plan.sizes.ofKeys.rank;
            int64_t const valueRank = plan.sizes.ofValues.rank;
            take(at, q, plan.unitRows * k.padded);
            take(at, scaledQ, isScaled ? plan.unitRows * k.padded : 0);
            take(at, constants, plan.unitRows);
            take(at, logits, plan.unitRows * plan.chunk);
            take(at, bias, plan.chunk);
            take(at, scale, scales);
            take(at, minimum, scales);
            take(at, turned, kTILE);
            take(at, weights, v.groups() * kBLOCK * kTILE);
            take(at, starts, v.groups() * kBLOCK);
            take(at, rows, kTILE * std::max(keysMade, valuesMade));
            int64_t const rowBytes = std::max(k.format.rowBytes(), v.format.rowBytes());
            float* takenFloats = nullptr;
            take(at, takenFloats, plan.sizes.isIndexed ? (kTILE * rowBytes + 3) / 4 : 0);
            taken = reinterpret_cast<char*>(takenFloats);
            take(at, turnedRows, plan.isWide ? kTILE * k.padded : 0);
            take(at, factors, std::max(keyRank, valueRank) * kTILE);
            take(at, factorRows, std::max(keyRank, valueRank) * kTILE);
            take(at, basis, std::max(keyRank * k.padded, valueRank * v.padded));
            take(at, keyGroups, k.parts * k.blocks);
            take(at, valueGroups, v.parts * v.blocks);
        }

    private:
        template <typename T>
        void take(float*& at, T*& pointer, int64_t count)
        {
            static_assert(sizeof(T) == sizeof(float), "one unit of memory");
            pointer = reinterpret_cast<T*>(at);
            int64_t const floats = roundUp(count, 16);
            at = at == nullptr ? nullptr : at + floats;
            size += floats;
        }
    };

    int64_t scratchStart() const noexcept
    {
        return roundUp(units * splits * partFloats, 16);
    }

    //! Where the lists of chosen slots start.
    int64_t listStart() const noexcept
    {
        return scratchStart() + pieces * scratchFloats;
    }

    //! Floats that a list takes: its length, then slots.
    int64_t listFloats() const noexcept
    {
        return 2 * (sizes.columns + 1);
    }

    int64_t floats() const noexcept
    {
        return listStart() + (sizes.isIndexed ? sizes.index.lists * listFloats() : 0);
    }
};

//! Scratch memory of the pieces that run at a time, the first ones again and again, so that they stay in caches.
class ScratchPool
{
public:
    static_assert(kPIECES <= 64, "a bit for each");

    class Lease
    {
    public:
        explicit Lease(ScratchPool& pool)
            : mPool(pool)
            , mIndex(pool.take())
        {
        }

        ~Lease()
        {
            mPool.mTaken.fetch_and(~(uint64_t{1} << static_cast<uint32_t>(mIndex)));
        }

        Lease(Lease const&) = delete;
        Lease& operator=(Lease const&) = delete;

        int64_t index() const noexcept
        {
            return mIndex;
        }

    private:
        ScratchPool& mPool;
        int64_t mIndex;
    };

private:
    int64_t take() noexcept
    {
        uint64_t taken = mTaken.load();
        for (;;)
        {
            uint64_t const free = ~taken & (taken + 1); // no more pieces run than there are
            if (mTaken.compare_exchange_weak(taken, taken | free))
            {
                return __builtin_ctzll(free);
            }
        }
    }

    std::atomic<uint64_t> mTaken{0};
};

} // namespace cpu

} // namespace trtc::kv_attention
