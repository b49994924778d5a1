// Counts allocations and locks of this process while it is asked to, and whose they are: of the module nearest on the
// stack that is neither the C library nor the standard library of C++. Included by one file of a program.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <initializer_list>
#include <pthread.h>
#include <unwind.h>

namespace counted
{

struct Count
{
    std::atomic<long> all{0}; //!< of the whole process
    std::atomic<long> own{0}; //!< of the library
};

inline Count gAllocations, gLocks;
inline std::atomic<bool> gCounts{false};
inline thread_local bool tLooks = false; // what the look itself allocates is not counted

//! Whether a module's own calls are looked through to who called it.
inline bool isBetween(char const* path)
{
    for (char const* name : {"libstdc++", "libc.so", "libc-", "libgcc", "libpthread", "ld-linux", "libm.so"})
    {
        if (std::strstr(path, name) != nullptr)
        {
            return true;
        }
    }
    return false;
}

inline _Unwind_Reason_Code look(_Unwind_Context* frame, void* found)
{
    Dl_info info;
    void* const at = reinterpret_cast<void*>(_Unwind_GetIP(frame));
    static void* const own = []
    {
        Dl_info mine;
        return ::dladdr(reinterpret_cast<void*>(&isBetween), &mine) != 0 ? mine.dli_fbase : nullptr;
    }();
    if (at == nullptr || ::dladdr(at, &info) == 0 || info.dli_fname == nullptr || info.dli_fbase == own
        || isBetween(info.dli_fname))
    {
        return _URC_NO_REASON;
    }
    *static_cast<bool*>(found) = std::strstr(info.dli_fname, "libtrt_compress_runtime") != nullptr;
    return _URC_END_OF_STACK;
}

inline void count(Count& what) noexcept
{
    if (!gCounts.load(std::memory_order_relaxed) || tLooks)
    {
        return;
    }
    tLooks = true;
    bool isOwn = false;
    _Unwind_Backtrace(look, &isOwn);
    what.all.fetch_add(1, std::memory_order_relaxed);
    what.own.fetch_add(isOwn, std::memory_order_relaxed);
    tLooks = false;
}

//! Count from nothing.
inline void begin()
{
    for (Count* each : {&gAllocations, &gLocks})
    {
        each->all = each->own = 0;
    }
    gCounts = true;
}

inline void end()
{
    gCounts = false;
}

} // namespace counted

#pragma GCC visibility push(default) // else what is loaded calls the C library's
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) noexcept
{
    counted::count(counted::gAllocations);
    return __libc_malloc(bytes);
}

void* calloc(size_t many, size_t bytes) noexcept
{
    counted::count(counted::gAllocations);
    return __libc_calloc(many, bytes);
}

void* realloc(void* held, size_t bytes) noexcept
{
    counted::count(counted::gAllocations);
    return __libc_realloc(held, bytes);
}

void* aligned_alloc(size_t alignment, size_t bytes) noexcept
{
    counted::count(counted::gAllocations);
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void** held, size_t alignment, size_t bytes) noexcept
{
    counted::count(counted::gAllocations);
    *held = __libc_memalign(alignment, bytes);
    return *held == nullptr ? 12 : 0;
}

int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept
{
    using Lock = int (*)(pthread_mutex_t*);
    static std::atomic<Lock> next{nullptr};
    Lock found = next.load(std::memory_order_relaxed);
    if (found == nullptr)
    {
        found = reinterpret_cast<Lock>(::dlsym(RTLD_NEXT, "pthread_mutex_lock"));
        next.store(found, std::memory_order_relaxed);
    }
    counted::count(counted::gLocks);
    return found(mutex);
}
}
#pragma GCC visibility pop
