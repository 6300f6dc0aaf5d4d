// Runs this project's CUDA kernels on a CPU: the twin of kernels/cuda/ptx.cuh.
//
// Every thread of a block is a fiber that runs until it waits: at __syncthreads, or at an operation
// of its warp (mma, shuffle, ballot), whose operands the lanes exchange. An element of an mma
// operand is looked up in the lane and register where the PTX ISA puts it (the table in ptx.cuh).
//
// It is meant to find faults, so it is stricter than a GPU:
// - Which of the threads that can run goes next is random (of a seed), one warp far ahead of the
//   others, so that a missing barrier shows.
// - Asynchronous copies are made at once or at the last moment allowed, as chosen, so that a stage
//   that is filled too early or read too early shows.
// - All accesses to global memory must be aligned and inside arrays that the caller names; shared
//   memory starts as garbage and has a guarded end.
// - Threads that wait for each other for ever, or meet at different operations, are an error.
// What it cannot show: that a GPU's instructions do what this file says, speed, and limits of
// registers.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

#define KERNEL static
#define DEVICE inline
#define UNROLL

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim;

namespace simt {

constexpr int LAUNCH_FAILURE = 719;  // cudaErrorLaunchFailure
constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t GUARD_BYTES = 4096;
constexpr unsigned char GARBAGE = 0xA5;

enum class State { READY, AT_WARP, AT_BLOCK, DONE };
enum Operation { MMA_8, MMA_16, SHUFFLE, BALLOT };

struct Copy {
    void* shared;
    const void* global;
    int bytes, group;
};

struct Fiber {
    State state = State::READY;
    bool started = false;
    int operations = 0;  // of its warp, so far
    int groups = 0;      // of copies, closed so far
    std::vector<Copy> copies;
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK_BYTES]};
    jmp_buf context;
    ucontext_t entry;
};

// What one lane brings to an operation of its warp.
struct Operand {
    uint32_t word[6];
};

struct Warp {
    int arrived = 0;
    int operation = 0;
    // Two sets of operands in turn: a lane that writes one has seen all lanes leave it.
    Operand operands[2][32];
};

struct Region {
    const unsigned char* begin;
    size_t bytes;
};

// The whole machine. One block runs at a time, in one host thread.
struct Machine {
    // Set by the tests.
    uint32_t seed = 1;
    bool late_copies = false;
    std::vector<Region> regions;
    // State.
    char error[256] = "";
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    std::vector<int> ready;
    std::vector<unsigned char> shared;
    unsigned char* shared_begin = nullptr;
    size_t shared_bytes = 0;
    int current = 0, threads = 0, at_block = 0, done = 0;
    int ahead = 0;  // the warp that runs while it can
    jmp_buf scheduler;
    void (*call)(void*) = nullptr;
    void* call_data = nullptr;
    long long mma_count = 0;
};

inline Machine machine;

inline uint32_t random() {  // xorshift
    uint32_t& s = machine.seed;
    s ^= s << 13;
    s ^= s >> 17;
    s ^= s << 5;
    return s;
}

[[noreturn]] inline void fail(const char* what) {
    std::snprintf(machine.error, sizeof machine.error, "block (%u, %u, %u) thread %u: %s",
                  blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, what);
    _longjmp(machine.scheduler, 2);
}

inline Fiber& self() { return *machine.fibers[machine.current]; }

// Give the processor back until another thread makes this one ready.
inline void wait(State state) {
    Fiber& fiber = self();
    fiber.state = state;
    if (_setjmp(fiber.context) == 0) _longjmp(machine.scheduler, 1);
}

inline void make_ready(int thread) {
    machine.fibers[thread]->state = State::READY;
    machine.ready.push_back(thread);
}

inline void block_barrier() {
    if (++machine.at_block == machine.threads) {
        machine.at_block = 0;
        for (int t = 0; t < machine.threads; ++t) {
            if (t != machine.current) make_ready(t);
        }
        // This thread goes back into the draw too.
        machine.ready.push_back(machine.current);
        wait(State::READY);
    } else {
        wait(State::AT_BLOCK);
    }
}

// Bring one lane's operand; returns all 32 once all lanes have brought theirs.
inline const Operand* exchange(Operation operation, const Operand& mine) {
    Fiber& fiber = self();
    Warp& warp = machine.warps[machine.current / 32];
    Operand* const all = warp.operands[fiber.operations++ % 2];
    all[machine.current % 32] = mine;
    if (warp.arrived == 0) warp.operation = operation;
    if (warp.operation != operation) fail("lanes of a warp meet at different operations");
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        const int first = machine.current / 32 * 32;
        for (int t = first; t < first + 32; ++t) {
            if (t != machine.current) make_ready(t);
        }
    } else {
        wait(State::AT_WARP);
    }
    return all;
}

// An access of `bytes` bytes to global memory, which must be a multiple of its alignment.
inline void check_global(const void* address, size_t bytes, size_t alignment) {
    const auto* at = static_cast<const unsigned char*>(address);
    if (reinterpret_cast<uintptr_t>(at) % alignment != 0) fail("an access is not aligned");
    for (const Region& region : machine.regions) {
        if (at >= region.begin && at + bytes <= region.begin + region.bytes) return;
    }
    fail("an access leaves its array");
}

inline void do_copy(const Copy& copy) {
    std::memset(copy.shared, 0, 16);
    std::memcpy(copy.shared, copy.global, copy.bytes);
}

inline void fiber_main() {
    machine.call(machine.call_data);
    self().state = State::DONE;
    ++machine.done;
    _longjmp(machine.scheduler, 1);
}

// Place in `ready` of the thread that runs next. One warp runs as long as it can, so that warps get
// as far apart as barriers let them; threads within a warp take random turns.
inline size_t choose() {
    Machine& m = machine;
    const size_t count = m.ready.size(), begin = random() % count;
    for (size_t i = 0; i < count; ++i) {
        const size_t at = begin + i < count ? begin + i : begin + i - count;
        if (m.ready[at] / 32 == m.ahead) return at;
    }
    m.ahead = m.ready[begin] / 32;
    return begin;
}

inline bool run_block(int threads, size_t bytes) {
    Machine& m = machine;
    m.threads = threads;
    m.at_block = m.done = 0;
    while (static_cast<int>(m.fibers.size()) < threads) {
        m.fibers.push_back(std::make_unique<Fiber>());
    }
    m.warps.assign(threads / 32, Warp{});
    m.shared.assign(bytes + GUARD_BYTES + 16, GARBAGE);
    const size_t past = reinterpret_cast<uintptr_t>(m.shared.data()) % 16;
    m.shared_begin = m.shared.data() + (16 - past) % 16;
    m.shared_bytes = bytes;
    m.ready.clear();
    for (int t = 0; t < threads; ++t) {
        Fiber& fiber = *m.fibers[t];
        fiber.started = false;
        fiber.operations = fiber.groups = 0;
        fiber.copies.clear();
        make_ready(t);
    }
    const int why = _setjmp(m.scheduler);  // every wait of a fiber comes back here
    if (why == 2) return false;
    if (m.done < threads) {
        if (m.ready.empty()) fail("the threads wait for each other for ever");
        const size_t pick = choose();
        m.current = m.ready[pick];
        m.ready[pick] = m.ready.back();
        m.ready.pop_back();
        threadIdx.x = static_cast<unsigned>(m.current);
        Fiber& fiber = self();
        if (fiber.started) _longjmp(fiber.context, 1);
        fiber.started = true;
        getcontext(&fiber.entry);
        fiber.entry.uc_stack.ss_sp = fiber.stack.get();
        fiber.entry.uc_stack.ss_size = STACK_BYTES;
        fiber.entry.uc_link = nullptr;
        makecontext(&fiber.entry, fiber_main, 0);
        setcontext(&fiber.entry);
    }
    for (size_t i = 0; i < GUARD_BYTES; ++i) {
        if (m.shared_begin[bytes + i] != GARBAGE) {
            std::snprintf(m.error, sizeof m.error, "a write beyond the shared memory");
            return false;
        }
    }
    return true;
}

}  // namespace simt

inline unsigned char* shared_memory() { return simt::machine.shared_begin; }

inline void __syncthreads() { simt::block_barrier(); }

inline float __shfl_xor_sync(uint32_t, float value, int mask) {
    simt::Operand mine{};
    std::memcpy(mine.word, &value, sizeof value);
    const simt::Operand* all = simt::exchange(simt::SHUFFLE, mine);
    float other;
    std::memcpy(&other, all[(threadIdx.x % 32) ^ static_cast<unsigned>(mask)].word, sizeof other);
    return other;
}

inline uint32_t __ballot_sync(uint32_t, int predicate) {
    const simt::Operand* all = simt::exchange(simt::BALLOT, {{predicate != 0 ? 1u : 0u}});
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= all[lane].word[0] << lane;
    return votes;
}

inline void mma_m8n8k128(int (&c)[2], const uint32_t (&a)[1], const uint32_t (&b)[1]) {
    const simt::Operand* all = simt::exchange(simt::MMA_8, {{a[0], b[0]}});
    const unsigned lane = threadIdx.x % 32;
    ++simt::machine.mma_count;
    for (unsigned r = 0; r < 2; ++r) {
        const unsigned row = lane / 4, col = 2 * (lane % 4) + r;
        uint32_t ones = 0;
        for (unsigned k = 0; k < 4; ++k) {  // row's words lie in lanes 4 * row + k, col's likewise
            ones += __builtin_popcount(all[4 * row + k].word[0] & all[4 * col + k].word[1]);
        }
        c[r] = static_cast<int>(static_cast<uint32_t>(c[r]) + ones);
    }
}

inline void mma_m16n8k256(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const simt::Operand* all =
        simt::exchange(simt::MMA_16, {{a[0], a[1], a[2], a[3], b[0], b[1]}});
    const unsigned lane = threadIdx.x % 32;
    ++simt::machine.mma_count;
    for (unsigned r = 0; r < 4; ++r) {
        const unsigned row = lane / 4 + (r < 2 ? 0 : 8), col = 2 * (lane % 4) + r % 2;
        uint32_t ones = 0;
        for (unsigned k = 0; k < 8; ++k) {
            // Word k of a row of A: lane 4 * (row % 8) + k % 4; registers 0 and 1 hold words 0 .. 3
            // of rows 0 .. 7 and 8 .. 15, registers 2 and 3 words 4 .. 7.
            const unsigned a_register = (row < 8 ? 0 : 1) + (k < 4 ? 0 : 2);
            const unsigned b_register = 4 + (k < 4 ? 0 : 1);
            ones += __builtin_popcount(all[4 * (row % 8) + k % 4].word[a_register] &
                                       all[4 * col + k % 4].word[b_register]);
        }
        c[r] = static_cast<int>(static_cast<uint32_t>(c[r]) + ones);
    }
}

inline void copy_async_16(void* shared, const void* global, int bytes) {
    simt::Machine& m = simt::machine;
    auto* const at = static_cast<unsigned char*>(shared);
    if (at < m.shared_begin || at + 16 > m.shared_begin + m.shared_bytes) {
        simt::fail("a copy leaves the shared memory");
    }
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0) simt::fail("a copy's target is not aligned");
    simt::check_global(global, static_cast<size_t>(bytes), 16);
    const simt::Copy copy{shared, global, bytes, simt::self().groups};
    if (m.late_copies) {
        simt::self().copies.push_back(copy);
    } else {
        simt::do_copy(copy);
    }
}

inline void copy_commit() { ++simt::self().groups; }

template <int PENDING>
inline void copy_wait() {
    simt::Fiber& fiber = simt::self();
    size_t kept = 0;
    for (const simt::Copy& copy : fiber.copies) {
        if (copy.group < fiber.groups - PENDING) {
            simt::do_copy(copy);
        } else {
            fiber.copies[kept++] = copy;
        }
    }
    fiber.copies.resize(kept);
}

struct alignas(16) Words4 {
    uint32_t word[4];
};

inline Words4 load_16(const void* global) {
    simt::check_global(global, 16, 16);
    Words4 words;
    std::memcpy(&words, global, 16);
    return words;
}

template <class T>
T load(const T* global) {
    simt::check_global(global, sizeof(T), sizeof(T));
    return *global;
}

template <class T>
void store(T* global, T value) {
    simt::check_global(global, sizeof(T), sizeof(T));
    *global = value;
}

inline float half_value(uint32_t pattern) {
    const uint32_t exponent = pattern >> 10 & 31, fraction = pattern & 0x3FF;
    const float sign = pattern >> 15 & 1 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
    return sign * std::ldexp(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25);
}

// Arguments bound to a kernel, called once per fiber.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, size_t bytes, void*, A... args) {
    simt::Machine& m = simt::machine;
    auto call = [&] { kernel(static_cast<P>(args)...); };
    m.call = [](void* data) { (*static_cast<decltype(call)*>(data))(); };
    m.call_data = &call;
    m.error[0] = 0;
    blockDim = dim3(static_cast<unsigned>(threads));
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                if (!simt::run_block(threads, bytes)) return simt::LAUNCH_FAILURE;
            }
        }
    }
    return 0;
}
