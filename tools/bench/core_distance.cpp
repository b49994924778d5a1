// How far the first two cores of this process are from each other: a number goes back and forth between two threads.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include <pthread.h>

namespace
{

void pin(int core)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
}

} // namespace

//! Nanoseconds of a round trip between cores `first` and `second`, mean of `trips`; the caller's affinity is restored.
extern "C" double roundTripNs(int first, int second, int trips)
{
    cpu_set_t before;
    pthread_getaffinity_np(pthread_self(), sizeof(before), &before);
    std::atomic<int> ball{0};
    std::atomic<bool> ready{false};
    std::thread other(
        [&]
        {
            pin(second);
            ready = true;
            for (int trip = 0; trip < trips; ++trip)
            {
                while (ball.load(std::memory_order_acquire) != 2 * trip + 1)
                {
                }
                ball.store(2 * trip + 2, std::memory_order_release);
            }
        });
    pin(first);
    while (!ready)
    {
        std::this_thread::yield();
    }
    auto const start = std::chrono::steady_clock::now();
    for (int trip = 0; trip < trips; ++trip)
    {
        ball.store(2 * trip + 1, std::memory_order_release);
        while (ball.load(std::memory_order_acquire) != 2 * trip + 2)
        {
        }
    }
    auto const end = std::chrono::steady_clock::now();
    other.join();
    pthread_setaffinity_np(pthread_self(), sizeof(before), &before);
    return std::chrono::duration<double, std::nano>(end - start).count() / std::max(trips, 1);
}
