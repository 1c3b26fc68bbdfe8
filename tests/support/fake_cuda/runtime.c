// A CUDA runtime without a device, built as libcudart.so.13. It claims one H100, keeps device memory in this process's
// memory, and executes nothing: kernels are only written down. What it is strict about, so that a mistake fails here:
// copies must stay inside allocated device memory, freed memory is unmapped, and a stream that is being captured takes
// only what CUDA captures.

#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#undef cudaGetDeviceProperties

#define MAX_BLOCKS 65536
#define MAX_KERNELS 131072
#define MAX_GRAPHS 4096
#define OK cudaSuccess
#define TAKE(name) do { cudaError_t error = enter(name); if (error) return error; } while (0)

// The journal: one line for each event, in the file that FAKE_CUDA_JOURNAL names.

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *journal;

void fake_cuda_note(const char *kind, const char *detail) {
    pthread_mutex_lock(&lock);
    if (!journal) {
        const char *path = getenv("FAKE_CUDA_JOURNAL");
        journal = fopen(path ? path : "/dev/null", "a");
        setvbuf(journal, NULL, _IOLBF, 0);
    }
    fprintf(journal, "%s %s\n", kind, detail);
    pthread_mutex_unlock(&lock);
}

static void note_size(const char *kind, size_t size) {
    char text[32];
    snprintf(text, sizeof text, "%zu", size);
    fake_cuda_note(kind, text);
}

// Errors. A broken context answers every call with its error, as after an illegal access: the error is sticky.

static cudaError_t broken;

void fake_cuda_break(int error) { broken = error; }

static cudaError_t enter(const char *name) {
    if (broken) fake_cuda_note("refused", name);
    return broken;
}

cudaError_t cudaGetLastError(void) { return broken; }
cudaError_t cudaPeekAtLastError(void) { return broken; }

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
        case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
        default: return "cudaErrorUnknown";
    }
}

const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

// Device memory.

static struct block { char *start; size_t size; } blocks[MAX_BLOCKS];
static int block_count;
static size_t taken;
static const size_t total = 80ul << 30;

static int is_device(const void *address, size_t size) {
    const char *start = address;
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count && !found; i++)
        found = blocks[i].start && start >= blocks[i].start && start + size <= blocks[i].start + blocks[i].size;
    pthread_mutex_unlock(&lock);
    return found;
}

static size_t limit(void) {
    const char *text = getenv("FAKE_CUDA_BYTES");
    return text ? strtoull(text, NULL, 10) : total;
}

static cudaError_t allocate(void **address, size_t size) {
    size_t whole = size ? size : 1;
    pthread_mutex_lock(&lock);
    int place = 0;
    while (place < block_count && blocks[place].start) place++;
    int fits = taken + whole <= limit() && place < MAX_BLOCKS;
    if (fits) {
        blocks[place].start = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        blocks[place].size = whole;
        taken += whole;
        if (place == block_count) block_count++;
        *address = blocks[place].start;
    }
    pthread_mutex_unlock(&lock);
    if (!fits) return cudaErrorMemoryAllocation;
    note_size("allocate", size);
    return OK;
}

static cudaError_t release(void *address) {
    if (!address) return OK;
    cudaError_t error = cudaErrorInvalidValue;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count && error; i++)
        if (blocks[i].start == address) {
            munmap(address, blocks[i].size);
            taken -= blocks[i].size;
            blocks[i].start = NULL;
            error = OK;
        }
    pthread_mutex_unlock(&lock);
    return error;
}

// Capture and graphs. `waiting` counts what was queued on a stream since it was last waited for.

static cudaStream_t capturing;
static int captured;
static long next_handle = 0x1000;
static struct graph { void *handle; int nodes; } graphs[MAX_GRAPHS];
static int graph_count;

static void *handle(void) {
    pthread_mutex_lock(&lock);
    void *made = (void *)(next_handle += 16);
    pthread_mutex_unlock(&lock);
    return made;
}

static int nodes_of(void *graph) {
    for (int i = 0; i < graph_count; i++)
        if (graphs[i].handle == graph) return graphs[i].nodes;
    return -1;
}

static void remember(void *graph, int nodes) {
    graphs[graph_count % MAX_GRAPHS] = (struct graph){graph, nodes};
    graph_count += graph_count < MAX_GRAPHS;
}

static cudaError_t outside_capture(const char *name) {
    TAKE(name);
    if (!capturing) return OK;
    fake_cuda_note("not-captured", name);
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capturing && stream == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return broken;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    TAKE("cudaStreamBeginCapture");
    (void)mode;
    capturing = stream;
    captured = 0;
    fake_cuda_note("capture", "begin");
    return OK;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (stream != capturing) return cudaErrorInvalidValue;
    capturing = NULL;
    *graph = handle();
    remember(*graph, captured);
    char text[64];
    snprintf(text, sizeof text, "end %d", captured);
    fake_cuda_note("capture", text);
    return broken;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    TAKE("cudaGraphInstantiate");
    (void)flags;
    *made = handle();
    remember(*made, nodes_of(graph));
    fake_cuda_note("instantiate", "");
    return OK;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    TAKE("cudaGraphLaunch");
    (void)stream;
    int nodes = nodes_of(graph);
    if (nodes < 0) return cudaErrorInvalidValue;
    note_size("replay", nodes);
    return OK;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { (void)graph; return broken; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    (void)graph;
    fake_cuda_note("destroy", "graph");
    return broken;
}

// Kernels.

static struct kernel { const void *function; const char *name; } kernels[MAX_KERNELS];
static int kernel_count;

void **__cudaRegisterFatBinary(void *binary) {
    static void *nothing[4];
    (void)binary;
    return nothing;
}

void __cudaRegisterFatBinaryEnd(void **binary) { (void)binary; }
void __cudaUnregisterFatBinary(void **binary) { (void)binary; }

void __cudaRegisterFunction(void **binary, const char *function, char *device, const char *name, int threads,
                            void *a, void *b, void *c, void *d, int *e) {
    (void)binary, (void)device, (void)threads, (void)a, (void)b, (void)c, (void)d, (void)e;
    if (kernel_count < MAX_KERNELS) kernels[kernel_count++] = (struct kernel){function, name};
}

void __cudaRegisterVar(void **binary, char *host, char *device, const char *name, int external, size_t size,
                       int constant, int global) {
    (void)binary, (void)host, (void)device, (void)name, (void)external, (void)size, (void)constant, (void)global;
}

static __thread struct { dim3 grid, block; size_t shared; void *stream; } calls[8];
static __thread unsigned depth;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    calls[depth & 7].grid = grid;
    calls[depth & 7].block = block;
    calls[depth & 7].shared = shared;
    calls[depth++ & 7].stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    depth--;
    *grid = calls[depth & 7].grid;
    *block = calls[depth & 7].block;
    *shared = calls[depth & 7].shared;
    *(void **)stream = calls[depth & 7].stream;
    return OK;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return OK;
}

static void queued(const char *kind, const char *detail) {
    if (capturing) captured++;
    fake_cuda_note(kind, detail);
}

void fake_cuda_queued(const char *kind, const char *detail) { queued(kind, detail); }
int fake_cuda_broken(void) { return broken; }

static cudaError_t launch(const void *function, dim3 grid, dim3 block) {
    TAKE("a kernel");
    const char *name = "?";
    for (int i = 0; i < kernel_count; i++)
        if (kernels[i].function == function) { name = kernels[i].name; break; }
    char text[4096];
    snprintf(text, sizeof text, "%s grid %u,%u,%u block %u,%u,%u", name, grid.x, grid.y, grid.z, block.x, block.y,
             block.z);
    queued("kernel", text);
    return OK;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    (void)arguments, (void)shared, (void)stream;
    return launch((const void *)kernel, grid, block);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    (void)arguments, (void)shared, (void)stream;
    return launch(function, grid, block);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream) {
    (void)arguments, (void)shared, (void)stream;
    return launch(function, grid, block);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
    (void)arguments;
    return launch(function, config->gridDim, config->blockDim);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    TAKE("cudaLaunchHostFunc");
    (void)stream;
    queued("host-function", "");
    function(data);
    return OK;
}

// The device.

cudaError_t cudaGetDeviceCount(int *count) {
    const char *text = getenv("FAKE_CUDA_DEVICES");
    *count = text ? atoi(text) : 1;
    return *count ? broken : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int *device) { *device = 0; return broken; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidValue : broken; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *made, int device) {
    TAKE("cudaGetDeviceProperties");
    (void)device;
    memset(made, 0, sizeof *made);
    strcpy(made->name, "an H100 that is not there");
    made->totalGlobalMem = total;
    made->major = 9;
    made->multiProcessorCount = 132;
    made->warpSize = 32;
    made->maxThreadsPerBlock = 1024;
    made->maxThreadsDim[0] = made->maxThreadsDim[1] = 1024;
    made->maxThreadsDim[2] = 64;
    made->maxGridSize[0] = 2147483647;
    made->maxGridSize[1] = made->maxGridSize[2] = 65535;
    made->maxThreadsPerMultiProcessor = 2048;
    made->maxBlocksPerMultiProcessor = 32;
    made->regsPerBlock = made->regsPerMultiprocessor = 65536;
    made->sharedMemPerBlock = 49152;
    made->sharedMemPerBlockOptin = 232448;
    made->sharedMemPerMultiprocessor = 233472;
    made->totalConstMem = 65536;
    made->memPitch = 2147483647;
    made->textureAlignment = 512;
    made->l2CacheSize = 50 << 20;
    made->unifiedAddressing = made->cooperativeLaunch = made->memoryPoolsSupported = 1;
    return OK;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    (void)device;
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        default: *value = 1;
    }
    return broken;
}

cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return OK; }

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *made, const void *function) {
    (void)function;
    memset(made, 0, sizeof *made);
    made->maxThreadsPerBlock = 1024;
    made->numRegs = 32;
    made->binaryVersion = made->ptxVersion = 90;
    return broken;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
    (void)function, (void)attribute, (void)value;
    return broken;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value,
                                            int device) {
    (void)kernel, (void)attribute, (void)value, (void)device;
    return broken;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks_of, const void *function, int threads,
                                                                   size_t shared, unsigned flags) {
    (void)function, (void)threads, (void)shared, (void)flags;
    *blocks_of = 2;
    return broken;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    (void)symbol, (void)version, (void)flags;
    *function = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return OK;
}

// Memory.

cudaError_t cudaMalloc(void **address, size_t size) {
    cudaError_t error = outside_capture("cudaMalloc");
    return error ? error : allocate(address, size);
}

cudaError_t cudaMallocFromPoolAsync(void **address, size_t size, cudaMemPool_t pool, cudaStream_t stream) {
    TAKE("cudaMallocFromPoolAsync");
    (void)pool, (void)stream;
    return allocate(address, size);
}

cudaError_t cudaFree(void *address) {
    cudaError_t error = outside_capture("cudaFree");
    return error ? error : release(address);
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) {
    (void)stream;
    return release(address);
}

cudaError_t cudaMallocHost(void **address, size_t size) {
    TAKE("cudaMallocHost");
    *address = aligned_alloc(64, (size + 127) / 64 * 64);
    return OK;
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) {
    (void)flags;
    return cudaMallocHost(address, size);
}

cudaError_t cudaFreeHost(void *address) {
    free(address);
    return broken;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all) {
    TAKE("cudaMemGetInfo");
    *all = limit();
    *free_bytes = *all - taken;
    return OK;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *made, const void *address) {
    memset(made, 0, sizeof *made);
    int device = is_device(address, 1);
    made->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    made->devicePointer = device ? (void *)address : NULL;
    made->hostPointer = device ? NULL : (void *)address;
    return broken;
}

// Copies. The journal tells which way a copy goes, and on which stream.

static cudaError_t copy(const char *name, void *target, size_t target_pitch, const void *source, size_t source_pitch,
                        size_t width, size_t height, enum cudaMemcpyKind kind, const char *stream) {
    static const char *ways[] = {"host-to-host", "host-to-device", "device-to-host", "device-to-device", "default"};
    TAKE(name);
    size_t target_size = height ? (height - 1) * target_pitch + width : 0;
    size_t source_size = height ? (height - 1) * source_pitch + width : 0;
    int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if ((to_device && !is_device(target, target_size)) || (from_device && !is_device(source, source_size))) {
        fake_cuda_note("outside", name);
        return cudaErrorInvalidValue;
    }
    char text[128];
    snprintf(text, sizeof text, "%s %zu %s", ways[kind], width * height, stream);
    queued("copy", text);
    for (size_t row = 0; row < height; row++)
        memmove((char *)target + row * target_pitch, (const char *)source + row * source_pitch, width);
    return OK;
}

cudaError_t cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind) {
    cudaError_t error = outside_capture("cudaMemcpy");
    return error ? error : copy("cudaMemcpy", target, size, source, size, size, 1, kind, "legacy");
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    (void)stream;
    return copy("cudaMemcpyAsync", target, size, source, size, size, 1, kind, "stream");
}

cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)stream;
    return copy("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, height, kind, "stream");
}

cudaError_t cudaMemcpyFromSymbol(void *target, const void *symbol, size_t size, size_t offset,
                                 enum cudaMemcpyKind kind) {
    (void)target, (void)symbol, (void)size, (void)offset, (void)kind;
    return outside_capture("cudaMemcpyFromSymbol");
}

cudaError_t cudaMemset(void *target, int value, size_t size) {
    cudaError_t error = outside_capture("cudaMemset");
    if (error) return error;
    if (!is_device(target, size)) return cudaErrorInvalidValue;
    memset(target, value, size);
    fake_cuda_note("set", "legacy");
    return OK;
}

cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t stream) {
    TAKE("cudaMemsetAsync");
    (void)stream;
    if (!is_device(target, size)) return cudaErrorInvalidValue;
    // Zeros need no write where the pages were never touched; the kernel gives zeros again after this.
    if (value == 0 && size >= 1 << 20 && !((size_t)target & 4095)) madvise(target, size & ~4095ul, MADV_DONTNEED);
    else memset(target, value, size);
    if (value == 0 && size >= 1 << 20 && !((size_t)target & 4095)) memset((char *)target + (size & ~4095ul), 0, size & 4095);
    queued("set", "stream");
    return OK;
}

// Streams and events.

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    TAKE("cudaStreamCreate");
    *stream = handle();
    fake_cuda_note("stream", "blocking");
    return OK;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    TAKE("cudaStreamCreateWithFlags");
    *stream = handle();
    fake_cuda_note("stream", flags ? "non-blocking" : "blocking");
    return OK;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) { (void)stream; return broken; }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    TAKE("cudaStreamSynchronize");
    if (capturing && stream == capturing) return cudaErrorStreamCaptureUnsupported;
    fake_cuda_note("wait", "stream");
    return OK;
}

cudaError_t cudaDeviceSynchronize(void) {
    cudaError_t error = outside_capture("cudaDeviceSynchronize");
    if (!error) fake_cuda_note("wait", "device");
    return error;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)stream, (void)event, (void)flags;
    return broken;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = handle(); return broken; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { (void)flags; return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { (void)event; return broken; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { (void)event, (void)stream; return broken; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    (void)event, (void)stream, (void)flags;
    return broken;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { (void)event; return broken; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    (void)begin, (void)end;
    *milliseconds = 0.01f;
    return broken;
}

// Libraries and pools.

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
    (void)library, (void)name;
    *kernel = NULL;
    return broken;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *options, void **values,
                                unsigned count, enum cudaLibraryOption *more, void **more_values, unsigned more_count) {
    (void)code, (void)options, (void)values, (void)count, (void)more, (void)more_values, (void)more_count;
    *library = NULL;
    return broken;
}
cudaError_t cudaLibraryUnload(cudaLibrary_t library) { (void)library; return broken; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
    (void)properties;
    *pool = handle();
    return broken;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) { (void)pool; return broken; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
    (void)pool, (void)attribute;
    *(unsigned long long *)value = 0;
    return broken;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
    (void)pool, (void)attribute, (void)value;
    return broken;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t kept) { (void)pool, (void)kept; return broken; }
