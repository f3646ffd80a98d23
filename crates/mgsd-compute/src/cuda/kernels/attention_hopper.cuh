// What the attention kernels for Hopper share (bf16; compile for sm_90a). Put after attention.cuh, in front of them.
//
// Products run on warpgroups of four warps: 64 rows by N columns, the right operand in shared memory, the left one
// there or in registers, sums in registers as with `multiply`: a thread's numbers 4 n .. 4 n + 4 are its part of 8
// columns.
//
// A tile in shared memory is cut into panels of 64 columns, 128 bytes a row, each panel's rows one after another; in
// row r, piece p of 16 bytes lies at place p ^ (r % 8), so that neither rows nor columns meet in a bank. Panels start
// at multiples of 1024 bytes.

#if !BF16 || (HEAD_DIM != 64 && HEAD_DIM != 128)
#error "these kernels are for bf16 and heads of 64 or 128 numbers"
#endif

#define PANELS (HEAD_DIM / 64)

typedef unsigned long long u64;

// Where a piece of 8 numbers lies in a tile of ROWS rows.
template <int ROWS> __device__ __forceinline__ int place_of(int row, int piece) {
    return (piece >> 3) * ROWS * 64 + row * 64 + ((piece & 7) ^ (row & 7)) * 8;
}

// Rows `0..valid` of `from` into a tile of ROWS rows, zeros after them.
template <int ROWS, int COPIERS> __device__ __forceinline__ void load_panels(
    number *to, const number *from, int stride, int valid
) {
    static_assert(COPIERS % PIECES == 0 && ROWS * PIECES % COPIERS == 0, "whole rows");
    const int piece = threadIdx.x % PIECES, row0 = threadIdx.x / PIECES;
    const u32 base = shared_address(to);
    const number *source = from + (long long)row0 * stride + piece * 8;
    const long long step = (long long)(COPIERS / PIECES) * stride;
#pragma unroll
    for (int i = 0; i < ROWS * PIECES / COPIERS; i++) {
        const int row = row0 + i * (COPIERS / PIECES);
        // Nothing is read where the row is not inside.
        copy_16(base + place_of<ROWS>(row, piece) * 2, source + i * step, row < valid);
    }
}

// The 64 query rows of a warpgroup. A block of two warpgroups has one tile and one head, or, where every key-value head
// has an even number of query heads, two heads and half a tile: the same keys serve both, and less is computed that
// nobody sees. Grid (heads, tiles) either way.
struct Rows {
    // Of this warpgroup, of the block, and the end of the block, in rows of the segment.
    int first, block_first, block_end;
    int head;
};

__device__ __forceinline__ Rows rows_of(int4 tile, int warpgroup, int group) {
    const bool pair = group % 2 == 0;
    const int odd = blockIdx.x & 1, start = tile.z - tile.x;
    Rows rows;
    rows.block_first = start + (pair ? odd * 64 : 0);
    rows.block_end = rows.block_first + (pair ? 64 : TILE);
    rows.first = rows.block_first + (pair ? 0 : warpgroup * 64);
    rows.head = pair ? blockIdx.x - odd + warpgroup : blockIdx.x;
    return rows;
}

// The rows of both warpgroups, as two tiles of 64 rows.
template <int COPIERS> __device__ __forceinline__ void load_rows(
    number *to, const number *from, int stride, int4 tile, int group
) {
#pragma unroll
    for (int warpgroup = 0; warpgroup < 2; warpgroup++) {
        const Rows rows = rows_of(tile, warpgroup, group);
        const number *source = from + (long long)(tile.x + rows.first) * stride + rows.head * HEAD_DIM;
        load_panels<64, COPIERS>(to + warpgroup * 64 * HEAD_DIM, source, stride, tile.y - tile.x - rows.first);
    }
}

// Own ordinary writes to shared memory, finished copies among them, become visible to the products.
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The operand whose rows are the result's rows or columns, summed over columns: from the first of its rows in the first
// panel. Rows must start at a multiple of 8. Each step of 16 columns is 32 bytes on.
__device__ __forceinline__ u64 by_rows(const number *at) {
    return (u64)((shared_address(at) & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
// The right operand whose columns are the result's columns, summed over rows, of a tile of ROWS rows. Each step of 16
// rows is 2048 bytes on.
template <int ROWS> __device__ __forceinline__ u64 by_columns(const number *at) {
    return (u64)((shared_address(at) & 0x3ffff) >> 4) | (u64)(ROWS * 128 >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
__device__ __forceinline__ u64 further(u64 operand, int bytes) { return operand + (u64)(bytes >> 4); }

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_so_far() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// Sums that products write behind the compiler's back: no use of them moves before this.
template <int N> __device__ __forceinline__ void settle(float (&c)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}

// c = a b, or c += a b with `add`; 64 columns, both operands by rows.
__device__ __forceinline__ void start_product(float (&c)[32], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
          "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
          "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
        : "l"(a), "l"(b), "r"((int)add)
        : "memory");
}
// c += a b, the left operand in registers, the right one by columns.
__device__ __forceinline__ void start_product(float (&c)[32], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
          "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
          "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
        : "memory");
}

// c = a b, or c += a b with `add`; 128 columns, both operands by rows.
__device__ __forceinline__ void start_product(float (&c)[64], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
          "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
          "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
          "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
          "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
          "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
          "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
        : "l"(a), "l"(b), "r"((int)add)
        : "memory");
}
// c += a b, the left operand in registers, the right one by columns.
__device__ __forceinline__ void start_product(float (&c)[64], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
          "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
          "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
          "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
          "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
          "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
          "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
        : "memory");
}

// All of a product over HEAD_DIM columns: `a` and `b` by rows, of tiles of A_ROWS and B_ROWS rows.
template <int A_ROWS, int B_ROWS, int N> __device__ __forceinline__ void start_scores(float (&c)[N], u64 a, u64 b) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const int panel = step / 4, inside = step % 4 * 32;
        start_product(c, further(a, panel * A_ROWS * 128 + inside), further(b, panel * B_ROWS * 128 + inside), step > 0);
    }
}

// 64 rows by 16 columns of results as left operands.
template <int N> __device__ __forceinline__ void as_lefts(u32 (&a)[N / 8][4], const float (&c)[N]) {
#pragma unroll
    for (int step = 0; step < N / 8; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[step][i] = pack(c[step * 8 + i * 2], c[step * 8 + i * 2 + 1]);
}

// c += the left operands times the rows of `b`, by columns.
template <int N, int K> __device__ __forceinline__ void start_sums(float (&c)[N], const u32 (&a)[K][4], u64 b) {
#pragma unroll
    for (int step = 0; step < K; step++) start_product(c, a[step], further(b, step * 2048));
}

// Barriers in shared memory at which some warps arrive and others wait, not necessarily at once: each time `warps`
// warps have arrived, a turn is over.
__device__ __forceinline__ void set_barrier(u64 *barrier, int warps) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(warps) : "memory");
}
__device__ __forceinline__ void arrive(u64 *barrier, int lane) {
    __syncwarp();
    if (lane == 0) asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Until turn 0, 1, 2, .. is over; at most one turn behind.
__device__ __forceinline__ void wait_turn(u64 *barrier, int turn) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@done bra over;\nbra again;\nover:\n}\n" ::"r"(shared_address(barrier)),
        "r"(turn & 1)
        : "memory");
}

// Only the 128 threads of a warpgroup wait for each other.
__device__ __forceinline__ void join_warpgroup(int which) { asm volatile("bar.sync %0, 128;" ::"r"(which + 1) : "memory"); }

// Writes a warp's 16 rows of results, times a factor for each of a thread's two rows, to the first `valid` rows of
// `to`, through rows `row0..row0 + 16` of a tile of ROWS rows that nobody reads any more.
template <int ROWS> __device__ __forceinline__ void store_panels(
    number *to, int stride, int valid, number *tile, int row0, const float (&c)[HEAD_DIM / 2], float upper, float lower,
    int lane
) {
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
        const int row = row0 + (lane >> 2), column = (lane & 3) * 2;
        *(u32 *)(tile + place_of<ROWS>(row, n) + column) = pack(c[n * 4] * upper, c[n * 4 + 1] * upper);
        *(u32 *)(tile + place_of<ROWS>(row + 8, n) + column) = pack(c[n * 4 + 2] * lower, c[n * 4 + 3] * lower);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * PIECES; i += 32) {
        const int row = i / PIECES, piece = i % PIECES;
        if (row < valid)
            *(uint4 *)(to + (long long)row * stride + piece * 8) = *(const uint4 *)(tile + place_of<ROWS>(row0 + row, piece));
    }
}
