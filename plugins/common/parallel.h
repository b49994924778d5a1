// A loop over tasks that a thread pool may share. The kernels know nothing of the pool behind it; without one the loop
// is serial.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace trtc
{

class ParallelFor
{
public:
    using Task = void (*)(void* data, size_t index);
    //! Runs task(data, 0) to task(data, total - 1), in any order and on any threads, and returns when all are done.
    using Pool = void (*)(void* context, size_t total, Task task, void* data);

    ParallelFor() = default;

    ParallelFor(Pool pool, void* context) noexcept
        : mPool(pool)
        , mContext(context)
    {
    }

    //! Calls body(begin, end) for pieces of at most `grain` that cover 0 to total. What the pieces compute must not
    //! depend on where they are cut.
    template <typename Body>
    void operator()(int64_t total, int64_t grain, Body const& body) const
    {
        grain = std::max<int64_t>(grain, 1);
        if (mPool == nullptr || total <= grain)
        {
            if (total > 0)
            {
                body(int64_t{0}, total);
            }
            return;
        }
        struct Pieces
        {
            Body const* body;
            int64_t total;
            int64_t grain;
        } pieces{&body, total, grain};
        auto const task = [](void* data, size_t index)
        {
            auto const& all = *static_cast<Pieces const*>(data);
            int64_t const begin = static_cast<int64_t>(index) * all.grain;
            (*all.body)(begin, std::min(begin + all.grain, all.total));
        };
        mPool(mContext, static_cast<size_t>((total + grain - 1) / grain), task, &pieces);
    }

private:
    Pool mPool = nullptr;
    void* mContext = nullptr;
};

} // namespace trtc
