#include "cuda_emulation.h"

#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ucontext asks the kernel for the signal mask at every switch; that is most of the time of a block.
#if defined(__x86_64__) && !defined(TRTC_FIBERS_UCONTEXT)
#define TRTC_FIBERS_ASSEMBLY
#else
#include <ucontext.h>
#endif

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim{};
dim3 gridDim{};

#ifdef TRTC_FIBERS_ASSEMBLY
// Saves what a callee must keep, stores the stack pointer in *from, and goes on where `to` was saved.
extern "C" void trtcSwitchStack(void** from, void* to);
asm(R"(
.text
.globl trtcSwitchStack
.hidden trtcSwitchStack
.type trtcSwitchStack,@function
trtcSwitchStack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size trtcSwitchStack,.-trtcSwitchStack
)");
#endif

namespace trtc::emulation
{
namespace
{

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kSTACK_BYTES = 512U * 1024U;
#else
constexpr size_t kSTACK_BYTES = 128U * 1024U;
#endif
constexpr unsigned kWARP = 32U;
constexpr unsigned kMAX_THREADS = 1024U;
constexpr size_t kPLAIN_SHARED = 48U * 1024U;
constexpr size_t kGUARD_BYTES = 256U;
constexpr unsigned char kGUARD = 0xc3U;

// Takes a thread that failed out of the kernel.
struct Ended
{
};

enum class State
{
    kREADY,
    kBARRIER,
    kWARP,
    kEXITED,
};

struct Context
{
#ifdef TRTC_FIBERS_ASSEMBLY
    void* stackPointer{nullptr};
#else
    ucontext_t machine{};
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fakeStack{nullptr};
    void const* bottom{nullptr};
    size_t bytes{0U};
#endif
};

struct Fiber
{
    Context context;
    unsigned char* stack{nullptr};
    bool started{false};
    State state{State::kEXITED};
    uint3 index{};
    unsigned number{0U};
    // Where it waits.
    char const* name{""};
    char const* file{""};
    int line{0};
    // Its part in a warp operation.
    WarpOp op{WarpOp::kSYNC};
    unsigned mask{0U};
    uint64_t bits{0U};
    int operand{0};
    int width{0};
    uint64_t result{0U};
};

// What a capture kept, in order.
using Recording = std::vector<std::function<cudaError_t()>>;

struct Machine
{
    std::recursive_mutex mutex;
    Recording* recording{nullptr};
    Settings settings;
    Counters counters;
    std::string fault;
    std::map<void const*, int> optedIn;
    cudaError_t lastError{cudaSuccess};

    std::vector<std::unique_ptr<Fiber>> fibers;
    Context scheduler;
    Fiber* current{nullptr};
    unsigned numThreads{0U};
    unsigned atBarrier{0U};
    unsigned exited{0U};
    int orValue{0};
    int andValue{1};
    int countValue{0};
    int barrierOr{0};
    int barrierAnd{0};
    int barrierCount{0};
    bool failed{false};
    std::function<void()> const* thread{nullptr};
    unsigned char* shared{nullptr};
};

Machine& machine()
{
    static Machine instance;
    return instance;
}

// After a switch has come to `to`; where it came from becomes known here.
void noteArrival([[maybe_unused]] Context& to, [[maybe_unused]] Context& from)
{
#if defined(__SANITIZE_ADDRESS__)
    void const* bottom = nullptr;
    size_t bytes = 0U;
    __sanitizer_finish_switch_fiber(to.fakeStack, &bottom, &bytes);
    from.bottom = bottom;
    from.bytes = bytes;
#endif
}

void switchTo(Context& from, Context& to)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fakeStack, to.bottom, to.bytes);
#endif
#ifdef TRTC_FIBERS_ASSEMBLY
    trtcSwitchStack(&from.stackPointer, to.stackPointer);
#else
    swapcontext(&from.machine, &to.machine);
#endif
    noteArrival(from, to);
}

void yieldToScheduler()
{
    Machine& m = machine();
    switchTo(m.current->context, m.scheduler);
}

// A fiber outlives its block: it runs one thread of the kernel each time it is started.
void fiberMain()
{
    Machine& m = machine();
    // The first arrival is no return from switchTo.
    noteArrival(m.current->context, m.scheduler);
    for (;;)
    {
        try
        {
            (*m.thread)();
        }
        catch (Ended const&)
        {
        }
        m.current->state = State::kEXITED;
        ++m.exited;
        yieldToScheduler();
    }
}

void prepareStack(Fiber& fiber)
{
    if (fiber.stack == nullptr)
    {
        // The lowest page stays closed: a kernel with too many locals faults instead of writing over a neighbour.
        size_t const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        void* memory = mmap(
            nullptr, kSTACK_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED)
        {
            throw std::bad_alloc();
        }
        mprotect(memory, page, PROT_NONE);
        fiber.stack = static_cast<unsigned char*>(memory) + page;
    }
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kSTACK_BYTES);
    fiber.context.fakeStack = nullptr;
    fiber.context.bottom = fiber.stack;
    fiber.context.bytes = kSTACK_BYTES;
#endif
#ifdef TRTC_FIBERS_ASSEMBLY
    // Six saved registers, the address to return to, and one word so that the stack is aligned as after a call.
    void** top = reinterpret_cast<void**>(fiber.stack + kSTACK_BYTES);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fiberMain);
    for (int i = 0; i < 6; ++i)
    {
        *--top = nullptr;
    }
    fiber.context.stackPointer = top;
#else
    getcontext(&fiber.context.machine);
    fiber.context.machine.uc_stack.ss_sp = fiber.stack;
    fiber.context.machine.uc_stack.ss_size = kSTACK_BYTES;
    fiber.context.machine.uc_link = nullptr;
    makecontext(&fiber.context.machine, fiberMain, 0);
#endif
    fiber.started = true;
}

std::string number(uint64_t value)
{
    return std::to_string(value);
}

std::string blockName()
{
    return "block (" + number(blockIdx.x) + ", " + number(blockIdx.y) + ", " + number(blockIdx.z) + ")";
}

std::string baseName(char const* file)
{
    std::string const path{file};
    size_t const slash = path.rfind('/');
    return slash == std::string::npos ? path : path.substr(slash + 1U);
}

std::string place(Fiber const& fiber)
{
    return fiber.state == State::kEXITED
        ? std::string{"ended"}
        : "wait at " + std::string{fiber.name} + " (" + baseName(fiber.file) + ":" + std::to_string(fiber.line) + ")";
}

void noteFault(std::string const& why)
{
    Machine& m = machine();
    if (!m.failed)
    {
        m.fault = blockName() + ": " + why;
    }
    m.failed = true;
}

// "threads 0-15 wait at __syncthreads (a.cu:3); threads 16-31 ended"
std::string whoIsWhere()
{
    Machine& m = machine();
    std::vector<std::pair<std::string, std::vector<unsigned>>> groups;
    for (unsigned t = 0; t < m.numThreads; ++t)
    {
        std::string const where = place(*m.fibers[t]);
        auto found =
            std::find_if(groups.begin(), groups.end(), [&](auto const& group) { return group.first == where; });
        if (found == groups.end())
        {
            groups.emplace_back(where, std::vector<unsigned>{});
            found = groups.end() - 1;
        }
        found->second.push_back(t);
    }
    std::string text;
    for (auto const& [where, threads] : groups)
    {
        text += text.empty() ? "" : "; ";
        text += threads.size() == 1U ? "thread " : "threads ";
        std::string ranges;
        unsigned shown = 0U;
        for (size_t i = 0; i < threads.size() && shown < 8U; ++shown)
        {
            size_t last = i;
            while (last + 1U < threads.size() && threads[last + 1U] == threads[last] + 1U)
            {
                ++last;
            }
            ranges += (ranges.empty() ? "" : ", ") + number(threads[i]) + (last > i ? "-" + number(threads[last]) : "");
            i = last + 1U;
            if (shown == 7U && i < threads.size())
            {
                ranges += ", ...";
            }
        }
        text += ranges + " " + where;
    }
    return text;
}

void releaseBarrier()
{
    Machine& m = machine();
    Fiber const& first = *m.fibers[0];
    for (unsigned t = 1; t < m.numThreads; ++t)
    {
        Fiber const& other = *m.fibers[t];
        if (other.line != first.line || std::strcmp(other.file, first.file) != 0)
        {
            noteFault("threads of one block wait at different barriers: " + whoIsWhere());
            return;
        }
    }
    ++m.counters.barriers;
    m.barrierOr = m.orValue;
    m.barrierAnd = m.andValue;
    m.barrierCount = m.countValue;
    m.orValue = 0;
    m.andValue = 1;
    m.countValue = 0;
    m.atBarrier = 0U;
    for (unsigned t = 0; t < m.numThreads; ++t)
    {
        m.fibers[t]->state = State::kREADY;
    }
}

bool isShuffle(WarpOp op)
{
    return op == WarpOp::kINDEX || op == WarpOp::kUP || op == WarpOp::kDOWN || op == WarpOp::kXOR;
}

uint64_t shuffled(Fiber const* const* lanes, unsigned lane, unsigned mask)
{
    Fiber const& self = *lanes[lane];
    int const width = self.width;
    int const own = static_cast<int>(lane);
    int const start = own / width * width;
    int source = own;
    switch (self.op)
    {
    case WarpOp::kINDEX: source = start + (self.operand & (width - 1)); break;
    case WarpOp::kUP: source = own - self.operand; break;
    case WarpOp::kDOWN: source = own + self.operand; break;
    default: source = own ^ self.operand; break;
    }
    bool const inside = self.op == WarpOp::kXOR ? source < start + width : source >= start && source < start + width;
    source = inside ? source : own;
    if (source < 0 || source >= static_cast<int>(kWARP) || ((mask >> source) & 1U) == 0U)
    {
        noteFault("thread " + number(self.number) + " reads lane " + std::to_string(source)
            + ", which is not in the mask, at " + self.name + " (" + baseName(self.file) + ":"
            + std::to_string(self.line) + ")");
        return 0U;
    }
    return lanes[source]->bits;
}

uint64_t combined(Fiber const* const* lanes, unsigned lane, unsigned mask)
{
    Fiber const& self = *lanes[lane];
    if (isShuffle(self.op))
    {
        return shuffled(lanes, lane, mask);
    }
    uint64_t result = 0U;
    bool first = true;
    auto const toSigned = [](uint64_t bits) { return static_cast<int32_t>(static_cast<uint32_t>(bits)); };
    for (unsigned other = 0; other < kWARP; ++other)
    {
        if (((mask >> other) & 1U) == 0U)
        {
            continue;
        }
        uint64_t const bits = lanes[other]->bits;
        switch (self.op)
        {
        case WarpOp::kBALLOT: result |= (bits & 1U) << other; break;
        case WarpOp::kANY: result |= bits & 1U; break;
        case WarpOp::kALL: result = first ? bits & 1U : result & bits; break;
        case WarpOp::kMATCH_ANY: result |= static_cast<uint64_t>(bits == self.bits ? 1U : 0U) << other; break;
        case WarpOp::kREDUCE_ADD: result = (result + bits) & 0xffffffffU; break;
        case WarpOp::kREDUCE_MIN: result = first ? bits : std::min(result, bits); break;
        case WarpOp::kREDUCE_MAX: result = first ? bits : std::max(result, bits); break;
        case WarpOp::kREDUCE_MIN_SIGNED: result = first || toSigned(bits) < toSigned(result) ? bits : result; break;
        case WarpOp::kREDUCE_MAX_SIGNED: result = first || toSigned(bits) > toSigned(result) ? bits : result; break;
        case WarpOp::kREDUCE_AND: result = first ? bits : result & bits; break;
        case WarpOp::kREDUCE_OR: result |= bits; break;
        case WarpOp::kREDUCE_XOR: result ^= bits; break;
        default: break;
        }
        first = false;
    }
    return result;
}

// Runs every thread of one block to its end; false if it failed.
bool runBlock(std::vector<unsigned>& order, std::mt19937_64& random)
{
    Machine& m = machine();
    m.atBarrier = 0U;
    m.exited = 0U;
    m.orValue = 0;
    m.andValue = 1;
    m.countValue = 0;
    for (unsigned t = 0; t < m.numThreads; ++t)
    {
        m.fibers[t]->state = State::kREADY;
    }
    while (m.exited < m.numThreads)
    {
        if (m.settings.order == Order::kRANDOM)
        {
            std::shuffle(order.begin(), order.end(), random);
        }
        bool progress = false;
        for (unsigned t : order)
        {
            Fiber& fiber = *m.fibers[t];
            if (fiber.state != State::kREADY)
            {
                continue;
            }
            progress = true;
            m.current = &fiber;
            threadIdx = fiber.index;
            ++m.counters.switches;
            switchTo(m.scheduler, fiber.context);
            if (m.failed)
            {
                return false;
            }
        }
        if (!progress)
        {
            noteFault("a barrier that not all threads reach: " + whoIsWhere());
            return false;
        }
    }
    return true;
}

void abandonFibers()
{
    for (auto& fiber : machine().fibers)
    {
        fiber->started = false;
    }
}

// Dynamic shared memory between guard bytes, closed to the sanitizer where there is one.
class SharedMemory
{
public:
    SharedMemory(size_t bytes, unsigned char fill)
        : mBytes(bytes)
        , mFill(fill)
        , mAll(bytes + 2U * kGUARD_BYTES + kGUARD_BYTES)
    {
        auto const address = reinterpret_cast<uintptr_t>(mAll.data());
        mStart = mAll.data() + (kGUARD_BYTES - address % kGUARD_BYTES) % kGUARD_BYTES + kGUARD_BYTES;
    }

    ~SharedMemory()
    {
        open();
    }

    SharedMemory(SharedMemory const&) = delete;
    SharedMemory& operator=(SharedMemory const&) = delete;

    unsigned char* start() const
    {
        return mStart;
    }

    void beginBlock()
    {
        open();
        std::memset(mStart - kGUARD_BYTES, kGUARD, kGUARD_BYTES);
        std::memset(mStart, mFill, mBytes);
        std::memset(mStart + mBytes, kGUARD, kGUARD_BYTES);
#if defined(__SANITIZE_ADDRESS__)
        ASAN_POISON_MEMORY_REGION(mStart - kGUARD_BYTES, kGUARD_BYTES);
        ASAN_POISON_MEMORY_REGION(mStart + mBytes, kGUARD_BYTES);
#endif
    }

    void endBlock()
    {
        open();
        for (size_t i = 0; i < kGUARD_BYTES; ++i)
        {
            if (mStart[mBytes + i] != kGUARD)
            {
                noteFault("byte " + number(mBytes + i) + " of dynamic shared memory was written; the launch asked for "
                    + number(mBytes));
                return;
            }
            if (mStart[-1 - static_cast<ptrdiff_t>(i)] != kGUARD)
            {
                noteFault("byte -" + number(i + 1U) + " of dynamic shared memory was written");
                return;
            }
        }
    }

private:
    void open()
    {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(mAll.data(), mAll.size());
#endif
    }

    size_t mBytes;
    unsigned char mFill;
    std::vector<unsigned char> mAll;
    unsigned char* mStart{nullptr};
};

cudaError_t runGrid(dim3 grid, dim3 block, size_t sharedBytes)
{
    Machine& m = machine();
    m.numThreads = block.x * block.y * block.z;
    while (m.fibers.size() < m.numThreads)
    {
        m.fibers.push_back(std::make_unique<Fiber>());
        m.fibers.back()->number = static_cast<unsigned>(m.fibers.size() - 1U);
    }
    for (unsigned t = 0; t < m.numThreads; ++t)
    {
        Fiber& fiber = *m.fibers[t];
        fiber.index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
        if (!fiber.started)
        {
            prepareStack(fiber);
        }
    }
    std::mt19937_64 random{m.settings.seed};
    std::vector<unsigned> order(m.numThreads);
    std::iota(order.begin(), order.end(), 0U);
    uint64_t const numBlocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    std::vector<uint64_t> blocks(numBlocks);
    std::iota(blocks.begin(), blocks.end(), uint64_t{0});
    if (m.settings.order == Order::kDESCENDING)
    {
        std::reverse(order.begin(), order.end());
        std::reverse(blocks.begin(), blocks.end());
    }
    if (m.settings.order == Order::kRANDOM)
    {
        std::shuffle(blocks.begin(), blocks.end(), random);
    }
    SharedMemory shared{sharedBytes, m.settings.sharedFill};
    m.shared = shared.start();
    for (uint64_t b : blocks)
    {
        blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
            static_cast<unsigned>(b / (static_cast<uint64_t>(grid.x) * grid.y))};
        shared.beginBlock();
        ++m.counters.blocks;
        bool const ended = runBlock(order, random);
        shared.endBlock();
        if (!ended || m.failed)
        {
            abandonFibers();
            return cudaErrorLaunchFailure;
        }
    }
    return cudaSuccess;
}

} // namespace

Settings& settings() noexcept
{
    return machine().settings;
}

Counters const& counters() noexcept
{
    return machine().counters;
}

std::string const& lastFault() noexcept
{
    return machine().fault;
}

void clearFault() noexcept
{
    machine().fault.clear();
}

unsigned char* dynamicShared() noexcept
{
    return machine().shared;
}

void fail(std::string const& why)
{
    noteFault("thread " + number(machine().current->number) + ": " + why);
    throw Ended{};
}

int blockBarrier(Combine combine, int value, char const* name, char const* file, int line)
{
    Machine& m = machine();
    Fiber& self = *m.current;
    self.name = name;
    self.file = file;
    self.line = line;
    self.state = State::kBARRIER;
    m.orValue |= value != 0 ? 1 : 0;
    m.andValue &= value != 0 ? 1 : 0;
    m.countValue += value != 0 ? 1 : 0;
    if (++m.atBarrier == m.numThreads)
    {
        releaseBarrier();
    }
    yieldToScheduler();
    switch (combine)
    {
    case Combine::kOR: return m.barrierOr;
    case Combine::kAND: return m.barrierAnd;
    case Combine::kCOUNT: return m.barrierCount;
    default: return 0;
    }
}

uint64_t warpOperation(
    WarpOp op, unsigned mask, uint64_t bits, int operand, int width, char const* name, char const* file, int line)
{
    Machine& m = machine();
    Fiber& self = *m.current;
    unsigned const lane = self.number % kWARP;
    unsigned const start = self.number - lane;
    self.name = name;
    self.file = file;
    self.line = line;
    if (((mask >> lane) & 1U) == 0U)
    {
        fail(std::string{name} + " (" + baseName(file) + ":" + std::to_string(line)
            + ") with a mask without its own lane " + number(lane));
    }
    if (width <= 0 || width > static_cast<int>(kWARP) || (width & (width - 1)) != 0)
    {
        fail(std::string{name} + " (" + baseName(file) + ":" + std::to_string(line) + ") with width "
            + std::to_string(width) + ", which is not 1, 2, 4, 8, 16 or 32");
    }
    self.op = op;
    self.mask = mask;
    self.bits = bits;
    self.operand = operand;
    self.width = width;
    self.state = State::kWARP;

    std::array<Fiber*, kWARP> lanes{};
    bool complete = true;
    for (unsigned other = 0; other < kWARP; ++other)
    {
        lanes[other] = start + other < m.numThreads ? m.fibers[start + other].get() : nullptr;
        if (((mask >> other) & 1U) == 0U)
        {
            continue;
        }
        if (lanes[other] == nullptr)
        {
            fail(std::string{name} + " (" + baseName(file) + ":" + std::to_string(line) + ") with lane " + number(other)
                + " in the mask, beyond the " + number(m.numThreads) + " threads of the block");
        }
        Fiber const& partner = *lanes[other];
        bool const here = partner.state == State::kWARP && partner.op == op && partner.mask == mask
            && partner.line == line && std::strcmp(partner.file, file) == 0;
        complete = complete && here;
    }
    if (complete)
    {
        ++m.counters.warpOperations;
        for (unsigned other = 0; other < kWARP; ++other)
        {
            if (((mask >> other) & 1U) != 0U)
            {
                lanes[other]->result = combined(lanes.data(), other, mask);
            }
        }
        for (unsigned other = 0; other < kWARP; ++other)
        {
            if (((mask >> other) & 1U) != 0U)
            {
                lanes[other]->state = State::kREADY;
            }
        }
    }
    yieldToScheduler();
    return self.result;
}

cudaError_t launchBlocks(
    void const* kernel, dim3 grid, dim3 block, size_t sharedBytes, std::function<void()> const& thread) noexcept
{
    Machine& m = machine();
    std::lock_guard<std::recursive_mutex> const lock{m.mutex};
    if (m.current != nullptr)
    {
        m.fault = "a kernel launched a kernel";
        return cudaErrorNotSupported;
    }
    uint64_t const threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    bool const fits = threads >= 1U && threads <= kMAX_THREADS && block.z <= 64U && grid.x >= 1U && grid.y >= 1U
        && grid.z >= 1U && grid.x <= 0x7fffffffU && grid.y <= 65535U && grid.z <= 65535U;
    if (!fits)
    {
        m.fault = "a launch of " + number(grid.x) + " x " + number(grid.y) + " x " + number(grid.z) + " blocks of "
            + number(threads) + " threads";
        return cudaErrorInvalidConfiguration;
    }
    auto const opted = m.optedIn.find(kernel);
    size_t const allowed = opted == m.optedIn.end() ? kPLAIN_SHARED : static_cast<size_t>(opted->second);
    if (sharedBytes > std::max(allowed, kPLAIN_SHARED))
    {
        m.fault = "a launch with " + number(sharedBytes) + " bytes of dynamic shared memory; the kernel opted in to "
            + number(allowed);
        return cudaErrorInvalidValue;
    }
    if (m.recording != nullptr)
    {
        m.recording->push_back([=] { return launchBlocks(kernel, grid, block, sharedBytes, thread); });
        return cudaSuccess;
    }
    m.failed = false;
    m.counters = {};
    m.thread = &thread;
    blockDim = block;
    gridDim = grid;
    cudaError_t status = cudaErrorMemoryAllocation;
    try
    {
        status = runGrid(grid, block, sharedBytes);
    }
    catch (std::bad_alloc const&)
    {
        m.fault = "no memory for " + number(threads) + " threads";
    }
    m.current = nullptr;
    m.thread = nullptr;
    m.shared = nullptr;
    return status;
}

uint16_t halfFromFloat(float value) noexcept
{
    uint32_t const bits = __float_as_uint(value);
    uint16_t const sign = static_cast<uint16_t>((bits >> 16U) & 0x8000U);
    if (std::isnan(value))
    {
        return 0x7fffU; // the hardware's only NaN
    }
    float const magnitude = std::fabs(value);
    if (magnitude >= 65520.0F)
    {
        return static_cast<uint16_t>(sign | 0x7c00U);
    }
    // Below 2^-14 the spacing is constant; above it is 2^(exponent - 10). nearbyint rounds to even, scaling is exact.
    int const spacing = magnitude == 0.0F ? -24 : std::max(std::ilogb(magnitude), -14) - 10;
    auto const steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -spacing)));
    // Normal numbers count steps from 1024 on in their binade, so that a carry moves into the exponent by itself.
    uint32_t const binade = static_cast<uint32_t>(spacing + 24);
    return static_cast<uint16_t>(sign | (steps + (binade << 10U)));
}

float floatFromHalf(uint16_t bits) noexcept
{
    int const exponent = (bits >> 10U) & 0x1f;
    int const fraction = bits & 0x3ff;
    float magnitude = 0.0F;
    if (exponent == 31)
    {
        magnitude = fraction == 0 ? INFINITY : NAN;
    }
    else if (exponent == 0)
    {
        magnitude = std::ldexp(static_cast<float>(fraction), -24);
    }
    else
    {
        magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    }
    return (bits & 0x8000U) != 0U ? -magnitude : magnitude;
}

uint16_t bfloat16FromFloat(float value) noexcept
{
    if (std::isnan(value))
    {
        return 0x7fffU;
    }
    uint32_t const bits = __float_as_uint(value);
    return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U);
}

float floatFromBfloat16(uint16_t bits) noexcept
{
    return __uint_as_float(static_cast<uint32_t>(bits) << 16U);
}

} // namespace trtc::emulation

using trtc::emulation::machine;

char const* cudaGetErrorName(cudaError_t status) noexcept
{
    switch (status)
    {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    }
    return "unknown";
}

char const* cudaGetErrorString(cudaError_t status) noexcept
{
    return status != cudaSuccess && !machine().fault.empty() ? machine().fault.c_str() : cudaGetErrorName(status);
}

cudaError_t cudaGetLastError() noexcept
{
    return std::exchange(machine().lastError, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() noexcept
{
    return machine().lastError;
}

cudaError_t cudaGetDevice(int* device) noexcept
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) noexcept
{
    auto const& settings = trtc::emulation::settings();
    switch (attribute)
    {
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * 1024; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = static_cast<int>(settings.maxSharedBytes) + 1024;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(settings.maxSharedBytes);
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = settings.multiProcessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = settings.computeCapability / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = settings.computeCapability % 10; return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

cudaError_t cudaDeviceSynchronize() noexcept
{
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) noexcept
{
    *stream = nullptr;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t /*stream*/) noexcept
{
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t /*stream*/) noexcept
{
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) noexcept
{
    *pointer = std::malloc(std::max<size_t>(bytes, 1U));
    return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void* pointer) noexcept
{
    std::free(pointer);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned /*flags*/) noexcept
{
    return cudaMalloc(pointer, bytes);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned /*flags*/) noexcept
{
    return cudaMalloc(pointer, bytes);
}

cudaError_t cudaFreeHost(void* pointer) noexcept
{
    return cudaFree(pointer);
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned /*flags*/) noexcept
{
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) noexcept
{
    return cudaMemsetAsync(to, value, bytes);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) noexcept
{
    if (machine().recording != nullptr)
    {
        machine().recording->push_back([=] { return cudaMemsetAsync(to, value, bytes, stream); });
        return cudaSuccess;
    }
    if (bytes > 0U)
    {
        std::memset(to, value, bytes);
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, void const* from, size_t bytes, cudaMemcpyKind kind) noexcept
{
    return cudaMemcpyAsync(to, from, bytes, kind);
}

cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) noexcept
{
    if (machine().recording != nullptr)
    {
        machine().recording->push_back([=] { return cudaMemcpyAsync(to, from, bytes, kind, stream); });
        return cudaSuccess;
    }
    if (bytes > 0U)
    {
        std::memmove(to, from, bytes);
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t toPitch, void const* from, size_t fromPitch, size_t width, size_t height,
    cudaMemcpyKind kind, cudaStream_t stream) noexcept
{
    if (width > toPitch || width > fromPitch)
    {
        return cudaErrorInvalidValue;
    }
    for (size_t row = 0; row < height; ++row)
    {
        cudaMemcpyAsync(static_cast<unsigned char*>(to) + row * toPitch,
            static_cast<unsigned char const*>(from) + row * fromPitch, width, kind, stream);
    }
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(void const* kernel, cudaFuncAttribute attribute, int value) noexcept
{
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
    {
        return cudaSuccess;
    }
    if (value < 0 || static_cast<size_t>(value) > trtc::emulation::settings().maxSharedBytes)
    {
        return cudaErrorInvalidValue;
    }
    machine().optedIn[kernel] = value;
    return cudaSuccess;
}

// For callers that load an emulated library through a C interface.
extern "C" __attribute__((visibility("default"))) void trtcEmulationSetOrder(int order, uint64_t seed) noexcept
{
    trtc::emulation::settings().order = static_cast<trtc::emulation::Order>(order);
    trtc::emulation::settings().seed = seed;
}

extern "C" __attribute__((visibility("default"))) char const* trtcEmulationFault() noexcept
{
    return machine().fault.c_str();
}

extern "C" __attribute__((visibility("default"))) void trtcEmulationClearFault() noexcept
{
    trtc::emulation::clearFault();
}

// A capture as in a CUDA graph: what is launched until its end is kept, and runs at each replay. The host
// device of the tests calls these.
extern "C" __attribute__((visibility("default"))) void trtcEmulationBeginCapture()
{
    machine().recording = new trtc::emulation::Recording;
}

extern "C" __attribute__((visibility("default"))) void* trtcEmulationEndCapture()
{
    return std::exchange(machine().recording, nullptr);
}

extern "C" __attribute__((visibility("default"))) int trtcEmulationReplay(void* captured)
{
    for (auto const& step : *static_cast<trtc::emulation::Recording*>(captured))
    {
        cudaError_t const status = step();
        if (status != cudaSuccess)
        {
            return static_cast<int>(status);
        }
    }
    return 0;
}

extern "C" __attribute__((visibility("default"))) void trtcEmulationForget(void* captured)
{
    delete static_cast<trtc::emulation::Recording*>(captured);
}
