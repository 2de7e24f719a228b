// Runs CUDA kernels on the processor. Included before the text of the kernels, by cuda_on_host.py.
//
// Every thread of a block is a fiber that runs until it waits; blocks run one after another. The order in which
// ready threads run is chosen, so that a missing barrier shows as results that depend on it. Nothing here hangs: a
// barrier or an exchange that not all of its threads reach ends the launch with a message.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__) || defined(HOST_UCONTEXT)
#include <ucontext.h>
#endif

struct HostIndex {
    unsigned x, y, z;
};
static HostIndex threadIdx, blockIdx, blockDim, gridDim;
static constexpr int warpSize = 32;

namespace host {

// Contexts ----------------------------------------------------------------------------------------------------------

constexpr size_t stack_bytes = 128 * 1024;

#if defined(__x86_64__) && !defined(HOST_UCONTEXT)
// swapcontext() makes a system call each time, which would be most of the time of a kernel that has many barriers.
struct Context {
    void* stack_pointer;
};
extern "C" void host_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .globl host_switch
    .hidden host_switch
    .type host_switch, @function
host_switch:
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
    .size host_switch, .-host_switch
)");
static void prepare(Context& context, char* stack, void (*entry)()) {
    // Six registers, then the address to return to, on a boundary of 16 bytes as at any call.
    void** top = reinterpret_cast<void**>(stack + stack_bytes) - 2;
    top[0] = reinterpret_cast<void*>(entry);
    top[1] = nullptr;
    std::fill(top - 6, top, nullptr);
    context.stack_pointer = top - 6;
}
static void change(Context& from, Context& to) { host_switch(&from.stack_pointer, to.stack_pointer); }
#else
struct Context {
    ucontext_t state;
};
static void prepare(Context& context, char* stack, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = stack_bytes;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}
static void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#endif

// Threads -----------------------------------------------------------------------------------------------------------

enum class State { ready, at_barrier, in_exchange, finished };

// What a thread waits in: one place in the text of the kernels.
struct Place {
    const char* what;
    const char* file;
    int line;
    bool operator==(const Place& other) const {
        return line == other.line && (what == other.what || !strcmp(what, other.what)) &&
               (file == other.file || !strcmp(file, other.file));
    }
    std::string text() const { return std::string(what) + " (" + file + ":" + std::to_string(line) + ")"; }
};

struct Thread {
    Context context;
    State state;
    Place place;
    uint64_t given;  // what it brings to an exchange
    uint64_t taken;  // the same, kept while the others of the exchange read it
};

constexpr int most_threads = 1024;
static Thread threads[most_threads];
static Thread* current;
static Context scheduler;
static std::string failure;
static void (*body)(void** arguments);
static void** body_arguments;

static void wait(State state, Place place, uint64_t given = 0) {
    current->state = state;
    current->place = place;
    current->given = given;
    change(current->context, scheduler);
}

[[noreturn]] static void fail(const std::string& message) {
    failure = message;
    change(current->context, scheduler);  // for good
    abort();
}

static void enter() {
    body(body_arguments);
    current->state = State::finished;
    change(current->context, scheduler);  // for good
    abort();
}

static char* stack_of(int thread) {
    static char* stacks = nullptr;
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t stride = stack_bytes + page;  // an overflow meets a page that cannot be written
    if (!stacks) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* mapped = mmap(nullptr, stride * most_threads, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (mapped == MAP_FAILED) abort();
        stacks = static_cast<char*>(mapped);
        for (int t = 0; t < most_threads; ++t) mprotect(stacks + t * stride, page, PROT_NONE);
    }
    return stacks + thread * stride + page;
}

// Order -------------------------------------------------------------------------------------------------------------

enum class Order { forward, reverse, shuffled };
static Order order;
static uint64_t random_state;

static size_t random_below(size_t count) {  // splitmix64
    uint64_t bits = random_state += 0x9E3779B97F4A7C15;
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB;
    return (bits ^ (bits >> 31)) % count;
}

static std::vector<long long> ordered(long long count) {
    std::vector<long long> all(count);
    std::iota(all.begin(), all.end(), 0LL);
    if (order == Order::reverse) std::reverse(all.begin(), all.end());
    if (order == Order::shuffled)
        for (size_t left = all.size(); left > 1; --left) std::swap(all[left - 1], all[random_below(left)]);
    return all;
}

// Shared memory -----------------------------------------------------------------------------------------------------

constexpr size_t shared_most = 232448;  // of a block, on the largest GPU
constexpr size_t margin = 4096;         // watched on either side
// A signaling NaN: whoever reads it gets NaN, and no arithmetic writes it back as it was.
constexpr uint64_t untouched = 0x7FF5A5A5A5A5A5A5;

extern "C" {
alignas(4096) char host_shared[margin + shared_most + margin];
}
static_assert(margin == 4096, "the line below says so too");
asm(".globl shared_memory\n.set shared_memory, host_shared + 4096");

static char pristine[sizeof host_shared];

static void clear_shared() {
    for (size_t at = 0; at < sizeof pristine; at += sizeof untouched)
        memcpy(pristine + at, &untouched, sizeof untouched);
    memcpy(host_shared, pristine, sizeof pristine);
}

static void check_shared(size_t shared_bytes) {
    const auto check = [=](size_t first, size_t last) {
        if (!memcmp(host_shared + first, pristine + first, last - first)) return;
        const char* written = std::mismatch(host_shared + first, host_shared + last, pristine + first).first;
        failure = "byte " + std::to_string(written - (host_shared + margin)) + " of shared memory was written, of " +
                  std::to_string(shared_bytes) + " bytes";
    };
    check(margin + shared_bytes, sizeof host_shared);
    check(0, margin);
}

// Scheduling --------------------------------------------------------------------------------------------------------

static std::string number(const Thread& thread) { return "thread " + std::to_string(&thread - threads); }

static std::string describe(const Thread& thread) {
    return number(thread) + (thread.state == State::finished ? " returned" : " waits in " + thread.place.text());
}

// Lets threads that have met go on, each with what it gave; fails unless all are in the same place.
static void release(Thread* first, Thread* last) {
    for (Thread* thread = first; thread != last; ++thread) {
        if (thread->state != first->state || !(thread->place == first->place)) {
            failure = describe(*first) + ", but " + describe(*thread);
            return;
        }
    }
    for (Thread* thread = first; thread != last; ++thread) {
        thread->taken = thread->given;
        thread->state = State::ready;
    }
}

static void resume(Thread& thread) {
    current = &thread;
    threadIdx.x = static_cast<unsigned>(&thread - threads);
    change(scheduler, thread.context);
}

// Runs the ready threads of a warp until each of them waits; true if all are at a barrier of the block, or finished.
static bool step(int warp) {
    Thread* first = threads + warp * warpSize;
    Thread* last = std::min(first + warpSize, threads + blockDim.x);
    for (long long lane : ordered(last - first)) {
        resume(first[lane]);
        if (!failure.empty()) return true;
    }
    const auto exchanging = [](const Thread& thread) { return thread.state == State::in_exchange; };
    Thread* waiting = std::find_if(first, last, exchanging);
    if (waiting == last) return true;
    Thread* missing = std::find_if_not(first, last, exchanging);
    if (missing != last) {
        failure = describe(*waiting) + ", but " + describe(*missing);
    } else if (last - first < warpSize) {
        failure = describe(*waiting) + ", but its warp has only " + std::to_string(last - first) + " threads";
    } else {
        release(first, last);
    }
    return !failure.empty();
}

static void run_block(size_t shared_bytes) {
    const int warps = (static_cast<int>(blockDim.x) + warpSize - 1) / warpSize;
    Thread* last = threads + blockDim.x;
    for (Thread* thread = threads; thread != last; ++thread) {
        prepare(thread->context, stack_of(static_cast<int>(thread - threads)), enter);
        thread->state = State::ready;
    }
    memset(host_shared + margin, 0xFF, shared_bytes);  // NaN, or -1
    while (true) {
        // One warp runs as far as it can before the next starts, unless warps take turns at random.
        std::vector<int> going(warps);
        std::iota(going.begin(), going.end(), 0);
        while (!going.empty()) {
            size_t chosen = order == Order::reverse ? going.size() - 1 : 0;
            if (order == Order::shuffled) chosen = random_below(going.size());
            if (step(going[chosen])) going.erase(going.begin() + static_cast<std::ptrdiff_t>(chosen));
            if (!failure.empty()) return;
        }
        const auto finished = [](const Thread& thread) { return thread.state == State::finished; };
        if (std::all_of(threads, last, finished)) break;
        release(threads, last);
        if (!failure.empty()) return;
    }
    check_shared(shared_bytes);
}

// Launching ---------------------------------------------------------------------------------------------------------

// The letters by which Python names the arguments that it passes: tensors by dtype, numbers by "i" and "f".
template <typename T>
constexpr bool accepts(char letter) {
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_cv_t<std::remove_pointer_t<T>>;
        if constexpr (std::is_void_v<Element>) return letter >= 'A' && letter <= 'Z';
        else if constexpr (std::is_same_v<Element, double>) return letter == 'D';
        else if constexpr (std::is_same_v<Element, float>) return letter == 'F';
        else return letter == "?BS?I???L"[sizeof(Element)];
    } else {
        static_assert(std::is_same_v<T, long long> || std::is_same_v<T, double>,
                      "kernels take pointers, long long and double only");
        return letter == (std::is_same_v<T, double> ? 'f' : 'i');
    }
}

struct Launch {
    long long grid_x, grid_y, threads, shared_bytes, order, seed;
};

static const char* run(const char* name, const Launch& how, int most, size_t parameters, size_t given,
                       long long wrong) {
    static std::string message;
    message = std::string("kernel '") + name + "'";
    failure.clear();
    if (given != parameters) {
        failure = "takes " + std::to_string(parameters) + " arguments, got " + std::to_string(given);
    } else if (wrong >= 0) {
        failure = "argument " + std::to_string(wrong) + " has another type";
    } else if (how.threads > most) {
        failure = "runs at most " + std::to_string(most) + " threads in a block, got " + std::to_string(how.threads);
    }
    if (failure.empty()) {
        order = static_cast<Order>(how.order);
        random_state = static_cast<uint64_t>(how.seed);
        blockDim = {static_cast<unsigned>(how.threads), 1, 1};
        gridDim = {static_cast<unsigned>(how.grid_x), static_cast<unsigned>(how.grid_y), 1};
        threadIdx = {0, 0, 0};
        clear_shared();
        for (long long block : ordered(how.grid_x * how.grid_y)) {
            blockIdx = {static_cast<unsigned>(block % how.grid_x), static_cast<unsigned>(block / how.grid_x), 0};
            run_block(static_cast<size_t>(how.shared_bytes));
            if (failure.empty()) continue;
            message += ", block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ")";
            break;
        }
    }
    message += ": " + failure;
    return failure.empty() ? nullptr : message.c_str();
}

template <auto kernel, typename... Parameters, size_t... position>
const char* launch(const char* name, void (*)(Parameters...), std::index_sequence<position...>, int most,
                   const Launch& how, const char* letters, void** arguments) {
    const size_t given = strlen(letters);
    long long wrong = -1;
    if (given == sizeof...(Parameters)) ((wrong = accepts<Parameters>(letters[position]) ? wrong : position), ...);
    body = [](void** values) { kernel(*static_cast<Parameters*>(values[position])...); };
    body_arguments = arguments;
    return run(name, how, most, sizeof...(Parameters), given, wrong);
}

template <typename... Parameters>
constexpr std::index_sequence_for<Parameters...> positions(void (*)(Parameters...)) {
    return {};
}

// Exchanges within a warp -------------------------------------------------------------------------------------------

template <typename T>
uint64_t packed(T value) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "exchanges take numbers only");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

static void exchange(unsigned mask, Place place, uint64_t given) {
    if (mask != 0xFFFFFFFFu) fail(number(*current) + " gives " + place.text() + " a mask that is not full");
    wait(State::in_exchange, place, given);
}

static int lane() { return static_cast<int>((current - threads) % warpSize); }

// What lane `from` of this thread's segment of `width` lanes gave; its own value if that lane is outside of it.
template <typename T>
T fetched(T value, int from, int width) {
    const int first = lane() / width * width;
    if (from < first || from >= first + width) return value;
    T result;
    memcpy(&result, &current[from - lane()].taken, sizeof result);
    return result;
}

static unsigned ballot(unsigned mask, Place place, int predicate) {
    exchange(mask, place, predicate != 0);
    unsigned result = 0;
    for (int each = 0; each < warpSize; ++each)
        result |= static_cast<unsigned>(current[each - lane()].taken) << each;
    return result;
}

}  // namespace host

// What CUDA C++ has, and C++ has not --------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __shared__  // only `extern __shared__ double shared_memory[]`, as cuda_on_host.py checks
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// The place of a call, evaluated where the call is because it is a default argument.
#define HOST_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

[[maybe_unused]] static void __syncthreads(HOST_PLACE) {
    host::wait(host::State::at_barrier, {"__syncthreads", file, line});
}
[[maybe_unused]] static void __syncwarp(unsigned mask = 0xFFFFFFFFu, HOST_PLACE) {
    host::exchange(mask, {"__syncwarp", file, line}, 0);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, HOST_PLACE) {
    host::exchange(mask, {"__shfl_sync", file, line}, host::packed(value));
    return host::fetched(value, host::lane() / width * width + (from & (width - 1)), width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, HOST_PLACE) {
    host::exchange(mask, {"__shfl_up_sync", file, line}, host::packed(value));
    return host::fetched(value, host::lane() - static_cast<int>(distance), width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, HOST_PLACE) {
    host::exchange(mask, {"__shfl_down_sync", file, line}, host::packed(value));
    return host::fetched(value, host::lane() + static_cast<int>(distance), width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, HOST_PLACE) {
    host::exchange(mask, {"__shfl_xor_sync", file, line}, host::packed(value));
    return host::fetched(value, host::lane() ^ bits, width);
}
[[maybe_unused]] static unsigned __ballot_sync(unsigned mask, int predicate, HOST_PLACE) {
    return host::ballot(mask, {"__ballot_sync", file, line}, predicate);
}
[[maybe_unused]] static int __any_sync(unsigned mask, int predicate, HOST_PLACE) {
    return host::ballot(mask, {"__any_sync", file, line}, predicate) != 0;
}
[[maybe_unused]] static int __all_sync(unsigned mask, int predicate, HOST_PLACE) {
    return host::ballot(mask, {"__all_sync", file, line}, predicate) == 0xFFFFFFFFu;
}

// Threads take turns only where they wait, so that any addition is atomic.
template <typename T>
T atomicAdd(T* address, T value) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long> ||
                      std::is_floating_point_v<T>,
                  "a GPU adds atomically to int, unsigned, unsigned long long, float and double only");
    const T before = *address;
    *address += value;
    return before;
}
template <typename T>
T __ldg(const T* address) {
    return *address;
}
[[maybe_unused]] static long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
[[maybe_unused]] static double __longlong_as_double(long long bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
[[maybe_unused]] static double rsqrt(double x) { return 1 / sqrt(x); }
[[maybe_unused]] static int __popc(unsigned x) { return __builtin_popcount(x); }
[[maybe_unused]] static int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
[[maybe_unused]] static int __ffs(int x) { return __builtin_ffs(x); }
// As in CUDA, of mixed types too.
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}

#define HOST_KERNEL(name, most)                                                                                  \
    extern "C" const char* host_launch_##name(const host::Launch* how, const char* letters, void** arguments) {  \
        return host::launch<name>(#name, name, host::positions(name), most, *how, letters, arguments);           \
    }
