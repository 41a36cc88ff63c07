/* A libnvidia-ml.so.1 that answers from the JSON file named by NVML_ANSWERS, with the calling rules of the real one:
   {"driver": "580.95.05", "cuda": 13000, "init": 0,
    "gpus": [{"name": "NVIDIA H100", "major": 9, "minor": 0, "total": 80, "free": 79, "mig": 0, "slices": 0, "mode": 0,
              "ecc": 1, "errors": 0, "pid": 0, "held": 0}]}
   Memory is in GiB. A key that is left out is "not supported". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
static char text[1 << 16];
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9 };

/* The object of one GPU (or of the whole file), and where it ends. */
static const char *object(long gpu, const char **end) {
    const char *at = text;
    *end = text + strlen(text);
    if (gpu < 0) { const char *list = strstr(text, "\"gpus\""); if (list) *end = list; return at; }
    at = strstr(text, "\"gpus\"");
    for (long n = 0; at && n <= gpu; n++) at = strchr(at + 1, '{');
    if (at) *end = strchr(at, '}');
    return at;
}
static const char *value(long gpu, const char *key) {
    const char *end, *at = object(gpu, &end);
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    at = at ? strstr(at, quoted) : NULL;
    return at && at < end ? at + strlen(quoted) : NULL;
}
static int number(long gpu, const char *key, long *to) {
    const char *at = value(gpu, key);
    if (!at) return NOT_SUPPORTED;
    *to = atol(at);
    return OK;
}
static int string(long gpu, const char *key, char *to, unsigned size) {
    const char *at = value(gpu, key);
    if (!at || !(at = strchr(at, '"'))) return NOT_SUPPORTED;
    size_t length = strcspn(at + 1, "\"");
    if (length >= size) return TOO_SMALL;
    memcpy(to, at + 1, length);
    to[length] = 0;
    return OK;
}
static long gpu_of(void *device) { return ((long)device & 0xff) - 1; }
static long slice_of(void *device) { return ((long)device >> 8) & 0xff; }
static int pair(void *device, const char *one, const char *two, unsigned *a, unsigned *b) {
    long x, y;
    int code = number(gpu_of(device), one, &x);
    if (!code) code = number(gpu_of(device), two, &y);
    if (!code) { *a = x; *b = y; }
    return code;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *path = getenv("NVML_ANSWERS");
    FILE *file = path ? fopen(path, "r") : NULL;
    long code = 0;
    if (!file) return NO_DRIVER;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    number(-1, "init", &code);
    if (code == -6) abort();
    return code;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "an error of the stub"; }
int nvmlSystemGetDriverVersion(char *to, unsigned size) { return string(-1, "driver", to, size); }
int nvmlSystemGetCudaDriverVersion(int *to) {
    long found;
    int code = number(-1, "cuda", &found);
    if (!code) *to = found;
    return code;
}
int nvmlSystemGetCudaDriverVersion_v2(int *to) { return nvmlSystemGetCudaDriverVersion(to); }
int nvmlDeviceGetCount_v2(unsigned *to) {
    const char *end;
    for (*to = 0; object(*to, &end); ++*to) {}
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **to) {
    const char *end;
    if (!object(index, &end)) return INVALID;
    *to = (void *)(long)(index + 1);
    return OK;
}
int nvmlDeviceGetName(void *d, char *to, unsigned size) { return string(gpu_of(d), "name", to, size); }
int nvmlDeviceGetUUID(void *d, char *to, unsigned size) {
    if (slice_of(d)) snprintf(to, size, "MIG-%ld-%ld", gpu_of(d), slice_of(d));
    else snprintf(to, size, "GPU-%ld", gpu_of(d));
    return OK;
}
int nvmlDeviceGetCudaComputeCapability(void *d, unsigned *a, unsigned *b) { return pair(d, "major", "minor", a, b); }
int nvmlDeviceGetMemoryInfo(void *d, u64 *to) {
    unsigned total, free;
    int code = pair(d, "total", "free", &total, &free);
    if (code) return code;
    to[0] = slice_of(d) ? 10ull << 30 : (u64)total << 30;
    to[1] = (u64)free << 30;
    to[2] = to[0] - to[1];
    return OK;
}
int nvmlDeviceGetMigMode(void *d, unsigned *a, unsigned *b) { return pair(d, "mig", "mig", a, b); }
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *to) { *to = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned index, void **to) {
    long slices = 0;
    number(gpu_of(d), "slices", &slices);
    if (index >= slices) return NOT_FOUND;
    *to = (void *)((long)d | ((long)(index + 1) << 8));
    return OK;
}
int nvmlDeviceGetComputeMode(void *d, int *to) {
    long mode;
    int code = number(gpu_of(d), "mode", &mode);
    if (!code) *to = mode;
    return code;
}
int nvmlDeviceGetEccMode(void *d, unsigned *a, unsigned *b) { return pair(d, "ecc", "ecc", a, b); }
int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, u64 *to) {
    long errors;
    int code = kind == 1 && counter == 0 ? number(gpu_of(d), "errors", &errors) : INVALID;
    if (!code) *to = errors;
    return code;
}
struct process { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, struct process *to) {
    long pid = 0, held = 0;
    number(gpu_of(d), "pid", &pid);
    number(gpu_of(d), "held", &held);
    if (!pid) { *count = 0; return OK; }
    if (*count < 1) { *count = 1; return TOO_SMALL; }
    *count = 1;
    to[0].pid = pid;
    to[0].memory = held < 0 ? ~0ull : (u64)held << 30; /* what the driver says where it does not know */
    to[0].gpu_instance = to[0].compute_instance = ~0u;
    return OK;
}
