// How the blocks of a cluster wait for each other and read each other's shared memory. Put in front of the kernels that
// do so before they are compiled. Needs compute capability 9.0; for kernels that run before that too, with one block
// where a cluster would be, some of it is there and does nothing.

__device__ __forceinline__ u32 shared_at(const void* at) { return (u32)__cvta_generic_to_shared(at); }

#if __CUDA_ARCH__ >= 900

// What a block wrote before it arrived is seen by those that have waited.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }

// The same where nothing was written that others are to see.
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Arrives and waits; the threads of a warp together.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where `at` of this block's shared memory lies in that of the block with this rank in the cluster.
__device__ __forceinline__ u32 peer(u32 at, int rank) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

// What is at a place that `peer` gave.
__device__ __forceinline__ void peer_load(u32& v, u32 at) {
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
}

__device__ __forceinline__ void peer_load(float& v, u32 at) {
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at));
}

__device__ __forceinline__ void peer_load(float (&v)[4], u32 at) {
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(at));
}

#else

__device__ __forceinline__ void cluster_sync() {}
__device__ __forceinline__ u32 peer(u32 at, int rank) { return at; }
__device__ __forceinline__ void peer_load(u32& v, u32 at) {}

#endif
