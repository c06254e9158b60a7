/* A stand-in for libcuda.so.1 over host memory, for tests on machines without a GPU.
 *
 * It implements the documented functions of the CUDA driver API that sdexport calls, and no others;
 * what is not here cannot be called. It is meant for code that speaks the driver API itself: NVIDIA's
 * libraries ask the driver for more than that, to see that it is genuine, and do not run over it.
 *
 * What makes mistakes show:
 *   - work is queued and runs at a wait (or bit by bit at a query), in the order of its stream;
 *   - device memory is filled with NaN when it is allocated and when it is freed, pinned memory too;
 *   - copies outside live memory, or from memory that is not pinned, are refused;
 *   - during a capture, what may not be called is refused and spoils the capture;
 *   - a graph holds the addresses that were given when it was captured;
 *   - every call is counted, and the n-th call of a function can be made to fail. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult, CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct Context *CUcontext;
typedef struct Stream *CUstream;
typedef struct Event *CUevent;
typedef struct Graph *CUgraph;
typedef struct Exec *CUgraphExec;
typedef void (*CUhostFn)(void *);

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500,
    NOT_READY = 600, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701, LAUNCH_TIMEOUT = 702,
    LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903, CAPTURE_WRONG_THREAD = 908
};
enum { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };                 /* CUstreamCaptureMode */
enum { CAPTURE_NONE = 0, CAPTURE_ACTIVE = 1, CAPTURE_SPOILED = 2 }; /* CUstreamCaptureStatus */
enum { NON_BLOCKING = 1 };                                          /* CU_STREAM_NON_BLOCKING */
enum { DISABLE_TIMING = 2 };                                        /* CU_EVENT_DISABLE_TIMING */

/* ---------- what the tests see: counts, a log of calls, failures ---------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* never held while a host function runs */
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER;

#define NAMES 96
#define LOG (1 << 20)
static struct { const char *name; long count; } counts[NAMES];
static unsigned char calls[LOG]; /* indices into `counts`, in order */
static size_t ncalls;

static struct { char name[64]; long after; CUresult status; } failure;
static CUresult lost; /* once the device is lost, every call says so */
static size_t memory_size = (size_t)2 << 30, memory_used, memory_peak, pinned_used;
enum { DEVICES = 4 };
static int devices = 1, capabilities[DEVICES] = { 89 }, initialized; /* capabilities as 89 */
static long objects; /* streams, events, graphs and executables that exist */

static int slot(const char *name) {
    int i = 0;
    while (i < NAMES - 1 && counts[i].name && strcmp(counts[i].name, name)) i++;
    if (!counts[i].name) counts[i].name = name;
    return i;
}

static int is_fatal(CUresult status) { /* "the process must be terminated and relaunched" */
    return status == 226 || status == ILLEGAL_ADDRESS || status == LAUNCH_TIMEOUT ||
           status == 710 || (status >= 714 && status <= LAUNCH_FAILED) || status == 721 ||
           status == 810 || status == 911;
}

/* Counts one call or one piece of work; its status if it is to fail. */
static CUresult counted(const char *name) {
    int i = slot(name);
    counts[i].count++;
    if (ncalls < LOG) calls[ncalls++] = (unsigned char)i;
    if (failure.after > 0 && (!strcmp(failure.name, name) ||
                              (!strcmp(failure.name, "*") && !strchr(name, '.')))) {
        if (!--failure.after) {
            if (is_fatal(failure.status)) lost = failure.status;
            return failure.status;
        }
    }
    return lost;
}

long standin_count(const char *name) {
    pthread_mutex_lock(&lock);
    long count = counts[slot(name)].count;
    pthread_mutex_unlock(&lock);
    return count;
}
void standin_reset(void) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < NAMES; i++) counts[i].count = 0;
    ncalls = 0, memory_peak = memory_used;
    pthread_mutex_unlock(&lock);
}
/* The name of the call at `index` of the log, null past its end. */
const char *standin_call(size_t index) {
    return index < ncalls && index < LOG ? counts[calls[index]].name : 0;
}
/* Makes the call of `name` that comes `after`-th from now give `status`; `*` is any call. */
void standin_fail(const char *name, long after, CUresult status) {
    pthread_mutex_lock(&lock);
    snprintf(failure.name, sizeof failure.name, "%s", name);
    failure.after = after, failure.status = status;
    pthread_mutex_unlock(&lock);
}
long standin_failure_left(void) { return failure.after; }
void standin_lose(CUresult status) { lost = status; }
/* As if the process were started anew, as far as the device's health goes. */
void standin_revive(void) { lost = OK, failure.after = 0; }
/* One device with this compute capability (as 89) and memory. */
void standin_device(int sm, size_t bytes) { devices = 1, capabilities[0] = sm, memory_size = bytes; }
/* A further device with this compute capability; all take from one memory. */
void standin_add_device(int sm) { if (devices < DEVICES) capabilities[devices++] = sm; }
size_t standin_memory_used(void) { return memory_used; }
size_t standin_memory_peak(void) { return memory_peak; }
size_t standin_pinned_used(void) { return pinned_used; }
long standin_objects(void) { return objects; }

/* ---------- memory ---------- */

struct Block { struct Block *next; char *start; size_t size; int pinned; };
static struct Block *blocks;
#define ALIGNMENT 512
#define NANS 0xff /* as every float format a NaN, as an integer -1 */

static struct Block *find(const void *address, size_t size, int pinned) {
    const char *start = address;
    for (struct Block *block = blocks; block; block = block->next)
        if (block->pinned == pinned && start >= block->start &&
            start + size <= block->start + block->size)
            return block;
    return 0;
}
/* Whether `size` bytes at `address` are device memory that is alive; for the TensorRT double. */
int standin_is_device(CUdeviceptr address, size_t size) {
    pthread_mutex_lock(&lock);
    int found = find((void *)address, size, 0) != 0;
    pthread_mutex_unlock(&lock);
    return found;
}
static CUresult allocate(void **address, size_t size, int pinned) {
    if (!address || !size) return INVALID_VALUE;
    if (!pinned && size > memory_size - memory_used) return OUT_OF_MEMORY;
    struct Block *block = malloc(sizeof *block);
    if (!block) return OUT_OF_MEMORY;
    char *start = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (!start) { free(block); return OUT_OF_MEMORY; }
    memset(start, NANS, size);
    *block = (struct Block){ blocks, start, size, pinned };
    blocks = block, *address = start;
    if (pinned) pinned_used += size;
    else memory_used += size;
    if (memory_used > memory_peak) memory_peak = memory_used;
    return OK;
}
static CUresult release(void *address, int pinned) {
    for (struct Block **at = &blocks; *at; at = &(*at)->next) {
        struct Block *block = *at;
        if (block->start != address || block->pinned != pinned) continue;
        *at = block->next;
        memset(block->start, NANS, block->size);
        if (pinned) pinned_used -= block->size;
        else memory_used -= block->size;
        free(block->start);
        free(block);
        return OK;
    }
    return INVALID_VALUE;
}

/* ---------- work ---------- */

struct Op {
    enum { COPY_IN, COPY_OUT, FILL, HOST, RECORD, WAIT, LAUNCH } kind;
    void *to;
    const void *from;
    size_t size;
    int value;
    CUhostFn function;
    CUevent event;
    long ticket; /* of a record: the event is done when its `done` reaches it */
    CUgraphExec exec;
};
struct Queued { struct Queued *next; struct Op op; };
struct Graph { struct Op *ops; size_t count; int executables; };
struct Exec { struct Op *ops; size_t count; int users, destroyed; };
struct Stream {
    struct Stream *next; /* of all streams */
    struct Queued *first, **last;
    int busy; /* a thread runs its work just now */
    int capturing, mode;
    pthread_t capturer;
    CUgraph graph;
};
struct Event { CUstream stream; long asked, done; double at; unsigned flags; int captured; };
struct Context { int users; };

static struct Context primary[DEVICES];
static __thread CUcontext current;
static __thread CUstream thread_captures; /* what this thread captures, in a mode that forbids */
static int global_captures;
static CUstream streams;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}
static CUresult run_until(CUstream stream, CUevent event, long ticket);

static void drop_exec(CUgraphExec exec) {
    if (--exec->users > 0 || !exec->destroyed) return;
    free(exec->ops);
    free(exec);
    objects--;
}
/* Runs one piece of work; the lock is held, and given up while a host function runs. */
static CUresult run(const struct Op *op) {
    static const char *const names[] = { "run.copy_in", "run.copy_out", "run.fill", "run.host",
                                         "run.record", "run.wait", "run.launch" };
    CUresult status = counted(names[op->kind]);
    if (status) { lost = lost ? lost : status; return status; }
    switch (op->kind) {
    case COPY_IN:
        if (!find(op->to, op->size, 0) || !find(op->from, op->size, 1)) return lost = ILLEGAL_ADDRESS;
        memcpy(op->to, op->from, op->size);
        break;
    case COPY_OUT:
        if (!find(op->from, op->size, 0) || !find(op->to, op->size, 1)) return lost = ILLEGAL_ADDRESS;
        memcpy(op->to, op->from, op->size);
        break;
    case FILL:
        if (!find(op->to, op->size, 0)) return lost = ILLEGAL_ADDRESS;
        memset(op->to, op->value, op->size);
        break;
    case HOST:
        pthread_mutex_unlock(&lock);
        op->function(op->to);
        pthread_mutex_lock(&lock);
        break;
    case RECORD:
        op->event->done = op->ticket, op->event->at = now();
        break;
    case WAIT:
        if (op->event->stream) return run_until(op->event->stream, op->event, op->ticket);
        break;
    case LAUNCH:
        for (size_t i = 0; i < op->exec->count && !lost; i++) run(&op->exec->ops[i]);
        break;
    }
    return lost;
}
/* Takes the stream's first piece of work and runs it; 0 if there is none. */
static int run_next(CUstream stream) {
    while (stream->busy) pthread_cond_wait(&idle, &lock);
    struct Queued *item = stream->first;
    if (!item) return 0;
    stream->first = item->next;
    if (!stream->first) stream->last = &stream->first;
    stream->busy = 1;
    if (!lost) run(&item->op);
    if (item->op.kind == LAUNCH) drop_exec(item->op.exec);
    free(item);
    stream->busy = 0;
    pthread_cond_broadcast(&idle);
    return 1;
}
/* Runs the stream's work up to the record of `event` with `ticket`, or all of it. */
static CUresult run_until(CUstream stream, CUevent event, long ticket) {
    while ((!event || event->done < ticket) && run_next(stream)) continue;
    while (!event && stream->busy) pthread_cond_wait(&idle, &lock);
    return lost;
}
static CUresult enqueue(CUstream stream, struct Op op) {
    if (!stream) return INVALID_HANDLE; /* sdexport has streams of its own, never the legacy one */
    if (stream->capturing == CAPTURE_SPOILED) return CAPTURE_INVALIDATED;
    if (stream->capturing) {
        struct Op *ops = realloc(stream->graph->ops, (stream->graph->count + 1) * sizeof *ops);
        if (!ops) return OUT_OF_MEMORY;
        stream->graph->ops = ops;
        ops[stream->graph->count++] = op;
        return OK;
    }
    struct Queued *item = malloc(sizeof *item);
    if (!item) return OUT_OF_MEMORY;
    *item = (struct Queued){ 0, op };
    *stream->last = item, stream->last = &item->next;
    if (op.kind == LAUNCH) op.exec->users++;
    return OK;
}
/* What allocates or waits is not allowed while this thread captures (in RELAXED mode it is). */
static CUresult forbidden(void) {
    if (!thread_captures && !global_captures) return OK;
    if (thread_captures) thread_captures->capturing = CAPTURE_SPOILED;
    return CAPTURE_UNSUPPORTED;
}

/* Begins a call: takes the lock, counts, and returns the status of a call that is to fail. */
static void unlock(int *held) { (void)held; pthread_mutex_unlock(&lock); }
#define CALL(needs_context)                                                               \
    __attribute__((cleanup(unlock), unused)) int held = pthread_mutex_lock(&lock);         \
    {                                                                                      \
        CUresult status = counted(__func__);                                               \
        if (status) return status;                                                         \
        if (!initialized) return NOT_INITIALIZED;                                          \
        if ((needs_context) && !current) return INVALID_CONTEXT;                           \
    }
/* For calls that give something back: it is given back also where the call reports a failure, as
 * the failure may be that of earlier work. */
#define GIVING_BACK(action)                                                               \
    __attribute__((cleanup(unlock), unused)) int held = pthread_mutex_lock(&lock);         \
    CUresult failed = counted(__func__);                                                   \
    CUresult status = (action);                                                            \
    return failed ? failed : status;

/* ---------- device and context ---------- */

CUresult cuInit(unsigned flags) {
    pthread_mutex_lock(&lock);
    CUresult status = flags ? INVALID_VALUE : counted(__func__);
    if (!status) initialized = 1;
    pthread_mutex_unlock(&lock);
    return status;
}
CUresult cuDriverGetVersion(int *version) { *version = 13000; return OK; }
/* The device behind an ordinal: CUDA_VISIBLE_DEVICES lists those that are shown, up to the first
 * number that is none. A CUdevice is the number among all. */
static CUresult shown(int ordinal, CUdevice *device, int *count) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int found[DEVICES], n = 0;
    if (!list) for (; n < devices; n++) found[n] = n;
    while (list && *list && n < DEVICES) {
        char *end;
        long number = strtol(list, &end, 10);
        if (end == list || number < 0 || number >= devices) break;
        found[n++] = (int)number;
        list = *end == ',' ? end + 1 : "";
    }
    if (count) *count = n;
    if (device && ordinal >= 0 && ordinal < n) *device = found[ordinal];
    return device && (ordinal < 0 || ordinal >= n) ? INVALID_DEVICE : OK;
}
static int unknown(CUdevice device) { return device < 0 || device >= devices; }
CUresult cuDeviceGetCount(int *count) { CALL(0) return shown(0, 0, count); }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { CALL(0) return shown(ordinal, device, 0); }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    CALL(0)
    if (unknown(device)) return INVALID_DEVICE;
    snprintf(name, (size_t)size, "stand-in, no GPU");
    return OK;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    CALL(0)
    *bytes = memory_size;
    return unknown(device) ? INVALID_DEVICE : OK;
}
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    CALL(0)
    if (unknown(device)) return INVALID_DEVICE;
    if (attribute != 75 && attribute != 76) return INVALID_VALUE; /* COMPUTE_CAPABILITY_… */
    *value = attribute == 75 ? capabilities[device] / 10 : capabilities[device] % 10;
    return OK;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CALL(0)
    if (unknown(device)) return INVALID_DEVICE;
    primary[device].users++, *context = &primary[device];
    return OK;
}
static CUresult give_up(CUdevice device) {
    if (unknown(device) || !primary[device].users) return INVALID_CONTEXT;
    primary[device].users--;
    return OK;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { GIVING_BACK(give_up(device)) }
CUresult cuCtxSetCurrent(CUcontext context) {
    CALL(0)
    if (context && (context < primary || context >= primary + DEVICES || !context->users))
        return INVALID_CONTEXT;
    current = context;
    return OK;
}
CUresult cuCtxGetDevice(CUdevice *device) {
    CALL(1)
    *device = (CUdevice)(current - primary);
    return OK;
}
/* Breaks every capture, whatever its mode and thread; else waits for all streams. */
CUresult cuCtxSynchronize(void) {
    CALL(1)
    int spoilt = 0;
    for (CUstream stream = streams; stream; stream = stream->next)
        if (stream->capturing) stream->capturing = CAPTURE_SPOILED, spoilt = 1;
    if (spoilt) return CAPTURE_UNSUPPORTED;
    for (CUstream stream = streams; stream && !lost;) {
        int waits = stream->first || stream->busy;
        if (waits) run_until(stream, 0, 0); /* gives the lock up: the list may have changed */
        stream = waits ? streams : stream->next;
    }
    return lost;
}
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CALL(1)
    if (forbidden()) return CAPTURE_UNSUPPORTED; /* not among what may be asked in a capture */
    *free_bytes = memory_size - memory_used, *total = memory_size;
    return OK;
}

/* ---------- memory and copies ---------- */

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    CALL(1)
    CUresult status = forbidden();
    return status ? status : allocate((void **)address, size, 0);
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    GIVING_BACK(forbidden() ? CAPTURE_UNSUPPORTED : release((void *)address, 0))
}
CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    (void)flags;
    CALL(1)
    CUresult status = forbidden();
    return status ? status : allocate(address, size, 1);
}
CUresult cuMemFreeHost(void *address) {
    GIVING_BACK(forbidden() ? CAPTURE_UNSUPPORTED : release(address, 1))
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    CALL(1)
    if (!find((void *)to, size, 0) || !find(from, size, 1)) return INVALID_VALUE;
    return enqueue(stream, (struct Op){ .kind = COPY_IN, .to = (void *)to, .from = from, .size = size });
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    CALL(1)
    if (!find((void *)from, size, 0) || !find(to, size, 1)) return INVALID_VALUE;
    return enqueue(stream, (struct Op){ .kind = COPY_OUT, .to = to, .from = (void *)from, .size = size });
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream stream) {
    CALL(1)
    if (!find((void *)to, size, 0)) return INVALID_VALUE;
    return enqueue(stream, (struct Op){ .kind = FILL, .to = (void *)to, .value = value, .size = size });
}
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
    CALL(1)
    if (!function) return INVALID_VALUE;
    return enqueue(stream, (struct Op){ .kind = HOST, .function = function, .to = data });
}

/* ---------- streams and events ---------- */

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    CALL(1)
    if (flags != NON_BLOCKING) return INVALID_VALUE; /* no other kind is used */
    if (!(*stream = calloc(1, sizeof **stream))) return OUT_OF_MEMORY;
    (*stream)->last = &(*stream)->first;
    (*stream)->next = streams, streams = *stream;
    objects++;
    return OK;
}
static CUresult destroy_stream(CUstream stream) {
    if (!stream) return INVALID_HANDLE;
    while (run_next(stream)) continue; /* "released once the device has completed all work" */
    for (CUstream *place = &streams; *place; place = &(*place)->next)
        if (*place == stream) { *place = stream->next; break; }
    free(stream);
    objects--;
    return OK;
}
CUresult cuStreamDestroy_v2(CUstream stream) { GIVING_BACK(destroy_stream(stream)) }
CUresult cuStreamSynchronize(CUstream stream) {
    CALL(1)
    if (!stream) return INVALID_HANDLE;
    if (stream->capturing) { stream->capturing = CAPTURE_SPOILED; return CAPTURE_UNSUPPORTED; }
    return run_until(stream, 0, 0);
}
CUresult cuStreamIsCapturing(CUstream stream, int *capturing) {
    CALL(1)
    *capturing = stream->capturing;
    return OK;
}
CUresult cuEventCreate(CUevent *event, unsigned flags) {
    CALL(1)
    if (!(*event = calloc(1, sizeof **event))) return OUT_OF_MEMORY;
    (*event)->flags = flags;
    objects++;
    return OK;
}
CUresult cuEventDestroy_v2(CUevent event) {
    GIVING_BACK(event ? (event->stream ? run_until(event->stream, event, event->asked) : OK,
                         free(event), objects--, OK)
                      : INVALID_HANDLE)
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
    CALL(1)
    if (!event || !stream) return INVALID_HANDLE;
    event->captured = stream->capturing != CAPTURE_NONE;
    if (event->captured) return stream->capturing == CAPTURE_SPOILED ? CAPTURE_INVALIDATED : OK;
    event->stream = stream;
    return enqueue(stream, (struct Op){ .kind = RECORD, .event = event, .ticket = ++event->asked });
}
CUresult cuEventQuery(CUevent event) {
    CALL(1)
    if (!event) return INVALID_HANDLE;
    if (event->captured) return forbidden() ? CAPTURE_UNSUPPORTED : INVALID_VALUE;
    /* The device works while the host asks: one piece a question. */
    if (event->done < event->asked) run_next(event->stream);
    return lost ? lost : event->done < event->asked ? NOT_READY : OK;
}
CUresult cuEventSynchronize(CUevent event) {
    CALL(1)
    if (!event) return INVALID_HANDLE;
    if (event->captured) return forbidden() ? CAPTURE_UNSUPPORTED : INVALID_VALUE;
    return event->stream ? run_until(event->stream, event, event->asked) : OK;
}
CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    CALL(1)
    if (!start || !end || !start->asked || !end->asked) return INVALID_HANDLE;
    if ((start->flags | end->flags) & DISABLE_TIMING) return INVALID_HANDLE;
    if (start->done < start->asked || end->done < end->asked) return NOT_READY;
    *milliseconds = (float)((end->at - start->at) * 1e3);
    return OK;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    CALL(1)
    if (!stream || !event || flags) return INVALID_VALUE;
    return enqueue(stream, (struct Op){ .kind = WAIT, .event = event, .ticket = event->asked });
}

/* ---------- capture and graphs ---------- */

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    CALL(1)
    if (!stream || mode < GLOBAL || mode > RELAXED) return INVALID_VALUE;
    if (stream->capturing) return ILLEGAL_STATE;
    if (!(stream->graph = calloc(1, sizeof *stream->graph))) return OUT_OF_MEMORY;
    stream->capturing = CAPTURE_ACTIVE, stream->mode = mode, stream->capturer = pthread_self();
    if (mode == THREAD_LOCAL) thread_captures = stream;
    if (mode == GLOBAL) global_captures++;
    return OK;
}
static CUresult end_capture(CUstream stream, CUgraph *graph, int failed) {
    if (!stream || !stream->capturing) return ILLEGAL_STATE;
    if (stream->mode != RELAXED && !pthread_equal(stream->capturer, pthread_self()))
        return CAPTURE_WRONG_THREAD;
    int spoiled = failed || stream->capturing == CAPTURE_SPOILED;
    if (stream->mode == THREAD_LOCAL) thread_captures = 0;
    if (stream->mode == GLOBAL) global_captures--;
    stream->capturing = CAPTURE_NONE;
    *graph = spoiled ? 0 : stream->graph;
    if (spoiled) free(stream->graph->ops), free(stream->graph);
    else objects++;
    stream->graph = 0;
    return spoiled ? CAPTURE_INVALIDATED : OK;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    GIVING_BACK(end_capture(stream, graph, failed))
}
CUresult cuGraphDestroy(CUgraph graph) {
    GIVING_BACK(graph ? (free(graph->ops), free(graph), objects--, OK) : INVALID_VALUE)
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    CALL(1)
    CUresult status = forbidden();
    if (status || !graph || flags) return status ? status : INVALID_VALUE;
    struct Exec *made = calloc(1, sizeof *made);
    if (!made || !(made->ops = malloc((graph->count + 1) * sizeof *made->ops))) return OUT_OF_MEMORY;
    memcpy(made->ops, graph->ops, graph->count * sizeof *made->ops);
    made->count = graph->count, made->users = 1;
    *exec = made;
    objects++;
    return OK;
}
CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
    CALL(1)
    return exec && stream ? OK : INVALID_VALUE;
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    CALL(1)
    if (!exec || exec->destroyed) return INVALID_VALUE;
    if (stream && stream->capturing) return CAPTURE_UNSUPPORTED; /* not used: no child graphs */
    return enqueue(stream, (struct Op){ .kind = LAUNCH, .exec = exec });
}
CUresult cuGraphExecDestroy(CUgraphExec exec) {
    GIVING_BACK(exec && !exec->destroyed ? (exec->destroyed = 1, drop_exec(exec), OK) : INVALID_VALUE)
}

/* ---------- names of errors, and the table that cuda-bindings looks functions up in ---------- */

static const struct { CUresult status; const char *name, *text; } errors[] = {
    { OK, "CUDA_SUCCESS", "no error" },
    { INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument" },
    { OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory" },
    { NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error" },
    { 100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected" },
    { INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal" },
    { INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context" },
    { INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle" },
    { ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state" },
    { NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found" },
    { NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready" },
    { ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered" },
    { OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch" },
    { LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated" },
    { LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure" },
    { CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing" },
    { CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture" },
    { CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a capture from another thread" },
};
CUresult cuGetErrorName(CUresult status, const char **name) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].status == status) return *name = errors[i].name, OK;
    return *name = 0, INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult status, const char **text) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].status == status) return *text = errors[i].text, OK;
    return *text = 0, INVALID_VALUE;
}

#define PLAIN(name) { #name, (void *)name }
#define NEWER(name, version) { #name, (void *)name##version }
static const struct { const char *name; void *function; } functions[] = {
    PLAIN(cuInit), PLAIN(cuDriverGetVersion), PLAIN(cuDeviceGetCount), PLAIN(cuDeviceGet),
    PLAIN(cuDeviceGetName), NEWER(cuDeviceTotalMem, _v2), PLAIN(cuDeviceGetAttribute),
    PLAIN(cuDevicePrimaryCtxRetain), NEWER(cuDevicePrimaryCtxRelease, _v2), PLAIN(cuCtxSetCurrent), PLAIN(cuCtxGetDevice), PLAIN(cuCtxSynchronize),
    NEWER(cuMemGetInfo, _v2), NEWER(cuMemAlloc, _v2), NEWER(cuMemFree, _v2), PLAIN(cuMemHostAlloc),
    PLAIN(cuMemFreeHost), NEWER(cuMemcpyHtoDAsync, _v2), NEWER(cuMemcpyDtoHAsync, _v2),
    PLAIN(cuMemsetD8Async), PLAIN(cuLaunchHostFunc), PLAIN(cuStreamCreate),
    NEWER(cuStreamDestroy, _v2), PLAIN(cuStreamSynchronize), PLAIN(cuStreamIsCapturing),
    PLAIN(cuEventCreate), NEWER(cuEventDestroy, _v2), PLAIN(cuEventRecord), PLAIN(cuEventQuery),
    PLAIN(cuEventSynchronize), NEWER(cuEventElapsedTime, _v2), PLAIN(cuStreamWaitEvent),
    NEWER(cuStreamBeginCapture, _v2), PLAIN(cuStreamEndCapture), PLAIN(cuGraphDestroy),
    { "cuGraphInstantiate", (void *)cuGraphInstantiateWithFlags }, PLAIN(cuGraphInstantiateWithFlags),
    PLAIN(cuGraphUpload), PLAIN(cuGraphLaunch), PLAIN(cuGraphExecDestroy), PLAIN(cuGetErrorName),
    PLAIN(cuGetErrorString),
};
CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *result) {
    (void)version, (void)flags;
    *function = 0;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(functions[i].name, name)) *function = functions[i].function;
    if (!*function && !strcmp(name, "cuGetProcAddress")) *function = (void *)cuGetProcAddress_v2;
    if (result) *result = *function ? 0 : 1; /* CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND */
    return *function || result ? OK : NOT_FOUND;
}
