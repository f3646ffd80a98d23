// How weights stream through shared memory to the tensor cores when they are multiplied by few rows: the copy engine, its
// barriers, both matrix instructions. Compute capability 9.0. Put in front of the kernels that do so before they are
// compiled, after cluster.cuh. ROWS: rows of x, rounded up to 8, 16 or 32.

typedef unsigned long long word;

__device__ __forceinline__ uint4 shared_load(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}

__device__ __forceinline__ void shared_store(u32 at, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ void shared_store(u32 at, u16 v) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(v) : "memory");
}

__device__ __forceinline__ u32 shared_word(u32 at) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

// What another kernel may have written while this one was already there: read past the first cache.
__device__ __forceinline__ float fresh(const bf16* from) {
    u16 v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(from));
    return __uint_as_float((u32)v << 16);
}

__device__ __forceinline__ u32 pack(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Where 64 rows of weights, or the rows of x, lie in shared memory.
__device__ __forceinline__ word describe(u32 at) {
    return (word)(at >> 4 & 0x3fff) | (word)1 << 16 | (word)64 << 32 | (word)1 << 62;
}

// c += weights xᵀ over 16 columns.
__device__ __forceinline__ void multiply_together(float (&c)[ROWS / 8][4], word weights, word x) {
    float* v = &c[0][0];
#define FOUR(i) "+f"(v[i]), "+f"(v[i + 1]), "+f"(v[i + 2]), "+f"(v[i + 3])
#if ROWS == 8
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
                 : FOUR(0)
                 : "l"(weights), "l"(x));
#elif ROWS == 16
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, "
                 "0, 0;"
                 : FOUR(0), FOUR(4)
                 : "l"(weights), "l"(x));
#else
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
                 "%12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
                 : FOUR(0), FOUR(4), FOUR(8), FOUR(12)
                 : "l"(weights), "l"(x));
#endif
#undef FOUR
}

// The copy engine's description of a matrix.
struct alignas(64) Map {
    u64 words[16];
};

__device__ __forceinline__ void barrier_start(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Until the phase with this parity is over.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 over, [%0], %1;\n"
                 "@!over bra again;\n"
                 "}" ::"r"(barrier), "r"(parity)
                 : "memory");
}

// 64 columns of some rows of a matrix into shared memory; zeros where the matrix has no rows.
__device__ __forceinline__ void copy(u32 to, const Map* map, int column, int row, u32 barrier, word policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}

template <class P> __device__ __forceinline__ P pick(P const (&of)[3], int set) {
    return set == 0 ? of[0] : set == 1 ? of[1] : of[2];
}

// Which weights a tile belongs to, and which of their outputs is its first; past the last there is none.
struct Tile {
    int set, first;
};

// Columns 2t.. and 2t + 8.. of a stretch of sixteen, of two rows of `b`.
struct Second {
    u32 words[4];
};

__device__ __forceinline__ Second second_at(const bf16* one, const bf16* other, int k, int rank) {
    const bool there = k < rank, more = k + 8 < rank;
    return {one && there ? *(const u32*)(one + k) : 0, other && there ? *(const u32*)(other + k) : 0,
            one && more ? *(const u32*)(one + k + 8) : 0, other && more ? *(const u32*)(other + k + 8) : 0};
}
