// What the kernel of large products is made of. Put in front of it before it is compiled, after cluster.cuh.
//
// Set when compiling:
//   WIDE    columns of a tile: 128, 160, 192 or 256
//   STAGES  pieces in the ring
//   ACROSS  1: weights are [inner, outputs] and out = x W; 0: they are [outputs, inner]
//   GATED   1: out = silu(x w0ᵀ) * (x w1ᵀ); 2: the two halves are kept as well; WIDE is 256
//   BASE    1: a matrix is added
//   EACH    1: several products of one x, side by side; without GATED, BASE and ACROSS
//   HEADS   1: with EACH, the first two are heads, which are normed and turned as head_norm.cuh says, which is put
//           behind this then; 2: they are kept as they were, too; WIDE is a multiple of HEAD_DIM, which is 128
//   LOWS    adapters; with GATED one for each half, or none; with EACH 1 if each product has one
//   STEPS   times sixteen columns of an adapter

// Blocks of a cluster.
#define BLOCKS 2
// Threads that multiply, in two groups, and all: four more warps copy.
#define WORKERS 256
#define THREADS (WORKERS + 128)
// Rows of a tile.
#define TALL 128
#define X_BYTES (TALL * 128)
// Weights that are summed over their rows come in panels of 64 columns.
#define W_PANELS ((WIDE + 63) / 64)
#define W_BYTES (ACROSS ? W_PANELS * 8192 : WIDE * 128)
#define STAGE_BYTES (X_BYTES + W_BYTES)
// Columns of the result that a tile gives.
#define RESULTS (GATED ? WIDE / 2 : WIDE)
// Results wait in panels of 64 rows, as many columns as a tile has a multiple of.
#define PANEL (WIDE % 64 == 0 ? 64 : 32)
#define PANEL_BYTES (64 * PANEL * 2)
#define PANELS (WIDE / PANEL)
#define RESULT_PANELS (RESULTS / PANEL)
#define RESULT_BYTES (PANELS * PANEL_BYTES)

// Whether warps that do not multiply copy results out, and work on them before.
#define OTHERS_LEAVE (GATED || HEADS)

struct Maps {
    Map x[3], w[3], low[3], b[3], out[3], raw[2], base;
};

__device__ __forceinline__ u32 pack(float first, float second) {
    u32 both;
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

__device__ __forceinline__ float first_of(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float second_of(u32 both) { return __uint_as_float(both & 0xffff0000u); }

// At the barrier of another block, at an address that `peer` gave. Nothing was written that the other one is to see, so
// that the block's own scope is enough; a cluster's would empty caches each time.
__device__ __forceinline__ void barrier_arrive_there(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// A box of a matrix into shared memory; zeros where the matrix ends.
__device__ __forceinline__ void copy(u32 to, const Map* map, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

// The same into the same place of both blocks, each of whose barriers hears of it.
__device__ __forceinline__ void copy_to_both(u32 to, const Map* map, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((u16)3)
                 : "memory");
}

// From shared memory into a box of a matrix; nothing where the matrix ends.
__device__ __forceinline__ void copy_out(const Map* map, int column, int row, u32 from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(column),
                 "r"(row), "r"(from)
                 : "memory");
}

// What a thread copied out until now makes one step.
__device__ __forceinline__ void step_ends() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all its steps have read their shared memory, or have ended.
__device__ __forceinline__ void wait_until_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void wait_until_written() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// What threads wrote to shared memory is about to be read by the copy engine.
__device__ __forceinline__ void show_to_engine() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Only some threads wait for each other.
template <int COUNT> __device__ __forceinline__ void join(int which) {
    asm volatile("bar.sync %0, %1;" ::"r"(which), "n"(COUNT) : "memory");
}

// 64 rows in shared memory, summed over their columns: each step of sixteen is 32 bytes on.
__device__ __forceinline__ word by_rows(u32 at) {
    return (word)(at >> 4 & 0x3fff) | (word)1 << 16 | (word)64 << 32 | (word)1 << 62;
}

// Panels of 64 columns by 64 rows, summed over their rows: each step of sixteen is 2048 bytes on.
__device__ __forceinline__ word by_columns(u32 at) {
    return (word)(at >> 4 & 0x3fff) | (word)512 << 16 | (word)64 << 32 | (word)1 << 62;
}

#define STEP (ACROSS ? 2048 / 16 : 32 / 16)

// A thread's numbers, by 32.
#define NAMES_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_1 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_2 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_3 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define NAMES_2_HALF "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FOUR(i) "+f"(v[i]), "+f"(v[i + 1]), "+f"(v[i + 2]), "+f"(v[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
#define TWICE(i) SIXTEEN(i), SIXTEEN(i + 16)
#define MULTIPLY(columns, more) \
    "{\n.reg .pred more;\nsetp.ne.b32 more, " more ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {"

// v = x w, or v += x w with `more`, over sixteen: 64 rows by WIDE columns. Numbers 4 n .. 4 n + 4 of thread 4 g + t of a warp are
// columns 8 n + 2 t and the next of the warp's rows g and g + 8.
__device__ __forceinline__ void multiply(float (&v)[WIDE / 2], word x, word w, bool more) {
#if WIDE == 128
    asm volatile(MULTIPLY("128", "%66") NAMES_0 ", " NAMES_1 "}, %64, %65, more, 1, 1, 0, %67;\n}"
                 : TWICE(0), TWICE(32)
                 : "l"(x), "l"(w), "r"((int)more), "n"(ACROSS)
                 : "memory");
#elif WIDE == 160
    asm volatile(MULTIPLY("160", "%82") NAMES_0 ", " NAMES_1 ", " NAMES_2_HALF "}, %80, %81, more, 1, 1, 0, %83;\n}"
                 : TWICE(0), TWICE(32), SIXTEEN(64)
                 : "l"(x), "l"(w), "r"((int)more), "n"(ACROSS)
                 : "memory");
#elif WIDE == 192
    asm volatile(MULTIPLY("192", "%98") NAMES_0 ", " NAMES_1 ", " NAMES_2 "}, %96, %97, more, 1, 1, 0, %99;\n}"
                 : TWICE(0), TWICE(32), TWICE(64)
                 : "l"(x), "l"(w), "r"((int)more), "n"(ACROSS)
                 : "memory");
#else
    asm volatile(MULTIPLY("256", "%130") NAMES_0 ", " NAMES_1 ", " NAMES_2 ", " NAMES_3 "}, %128, %129, more, 1, 1, 0, %131;\n}"
                 : TWICE(0), TWICE(32), TWICE(64), TWICE(96)
                 : "l"(x), "l"(w), "r"((int)more), "n"(ACROSS)
                 : "memory");
#endif
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// What was asked for until now is one piece of work.
__device__ __forceinline__ void products_so_far() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most LEFT pieces are not done.
template <int LEFT> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// Which tile a cluster has: times 2 * TALL rows, times RESULTS columns. `group` tiles one below the other come before the
// next columns, so that the tiles of one time share what they read.
struct Place {
    int row, column;
};

__device__ __forceinline__ Place place_of(int index, int down, int along, int group) {
    const int band = index / (group * along), rest = index % (group * along), height = min(group, down - band * group);
    return {band * group + rest % height, rest / height};
}

// Which product a tile belongs to, and its first column there.
struct Part {
    int set, column;
};

__device__ __forceinline__ Part part_of(Place place, int second, int third) {
#if EACH
    const int set = (place.column >= second) + (place.column >= third);
    return {set, (place.column - (set == 0 ? 0 : set == 1 ? second : third)) * RESULTS};
#else
    return {0, place.column * RESULTS};
#endif
}

// silu(gate) * up of two numbers.
__device__ __forceinline__ u32 gated(u32 gate, u32 up) {
    const float g0 = first_of(gate), g1 = second_of(gate);
    return pack(first_of(up) * (g0 * sigmoid(g0)), second_of(up) * (g1 * sigmoid(g1)));
}
