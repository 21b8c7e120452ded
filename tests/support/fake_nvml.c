/* A libnvidia-ml.so.1 without a GPU, for tests of the daemon.
 *
 * Comes in: the file that FAKE_NVML_STATE names, key=value lines, read again at every call, so that a
 * test makes something happen by writing it anew. Goes out: what NVML would say. Keys:
 *
 *   count=2                   GPUs (1)                    driver=580.65.06
 *   gpu.0.name= .uuid=        what it is called           gpu.0.mig=2     so many slices stand in its place
 *   gpu.0.mem_total_mib= .mem_used_mib=                   gpu.0.temp= .util= .power_mw= .ecc=
 *   gpu.0.slice.1.KEY=        the same of a slice
 *   gpu.0.err=15              every call on GPU 0 fails: 15 is "lost"
 *   delay_ms=400              every call takes so long
 *   err.nvmlInit_v2=9         this call fails: 9 is "driver not loaded", 18 "version mismatch"
 *   event=SEQ:GPU:TYPE:DATA   once for each new SEQ; type 8 is an Xid, 2 an uncorrected ECC error
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMED_OUT = 10 };
enum { GPUS = 8, SLICES = 8, MIB = 1 << 20 };
typedef unsigned Answer;
typedef unsigned long long Big;

struct device { int gpu, slice; }; /* slice -1: the GPU itself */
static struct device gpus[GPUS], slices[GPUS][SLICES];
struct memory { unsigned version; Big total, reserved, free, used; };
struct rates { unsigned gpu, memory; };
struct event { struct device *device; Big type, data; unsigned instance, compute; };
static Big registered[GPUS], last_event;

/* ── the file ─────────────────────────────────────────────────────────────────────────────────── */

static int find(const char *key, char *value, size_t size) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256];
    size_t length = strlen(key);
    int found = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && line[length] == '=') {
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    }
    fclose(file);
    return found;
}

static Big number(const char *key, Big otherwise) {
    char value[128];
    return find(key, value, sizeof value) ? strtoull(value, NULL, 10) : otherwise;
}

static const char *key_of(const struct device *device, const char *name, char *key, size_t size) {
    if (device->slice < 0) snprintf(key, size, "gpu.%d.%s", device->gpu, name);
    else snprintf(key, size, "gpu.%d.slice.%d.%s", device->gpu, device->slice, name);
    return key;
}

static Big of(const struct device *device, const char *name, Big otherwise) {
    char key[96];
    return number(key_of(device, name, key, sizeof key), otherwise);
}

/* Whether a call is to fail: by its own name, or because its GPU does. */
static Answer fails(const char *call, const struct device *device) {
    char key[96];
    usleep((unsigned)number("delay_ms", 0) * 1000);
    snprintf(key, sizeof key, "err.%s", call);
    Answer answer = (Answer)number(key, OK);
    if (answer || !device) return answer;
    snprintf(key, sizeof key, "gpu.%d.err", device->gpu);
    return (Answer)number(key, OK);
}
#define ON(device) do { Answer fails_ = fails(__func__, device); if (fails_) return fails_; } while (0)

static Answer text(const char *value, char *out, unsigned size) {
    if (strlen(value) + 1 > size) return TOO_SMALL;
    strcpy(out, value);
    return OK;
}

static Answer text_of(const struct device *device, const char *name, const char *otherwise, char *out,
                      unsigned size) {
    char key[96], value[128];
    int found = find(key_of(device, name, key, sizeof key), value, sizeof value);
    return text(found ? value : otherwise, out, size);
}

/* ── the library ──────────────────────────────────────────────────────────────────────────────── */

Answer nvmlInit_v2(void) {
    ON(NULL);
    for (int gpu = 0; gpu < GPUS; gpu++) {
        gpus[gpu] = (struct device){gpu, -1};
        for (int slice = 0; slice < SLICES; slice++) slices[gpu][slice] = (struct device){gpu, slice};
    }
    return OK;
}
Answer nvmlShutdown(void) { return OK; }

Answer nvmlSystemGetDriverVersion(char *out, unsigned size) {
    char value[64];
    ON(NULL);
    return text(find("driver", value, sizeof value) ? value : "580.65.06", out, size);
}

Answer nvmlDeviceGetCount_v2(unsigned *count) {
    ON(NULL);
    *count = (unsigned)number("count", 1);
    return OK;
}

Answer nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    if (index >= number("count", 1) || index >= GPUS) return INVALID;
    ON(&gpus[index]);
    *device = &gpus[index];
    return OK;
}

/* ── a device ─────────────────────────────────────────────────────────────────────────────────── */

Answer nvmlDeviceGetName(struct device *device, char *out, unsigned size) {
    ON(device);
    return text_of(device, "name", "NVIDIA Fake", out, size);
}

Answer nvmlDeviceGetUUID(struct device *device, char *out, unsigned size) {
    char uuid[64];
    ON(device);
    if (device->slice < 0) snprintf(uuid, sizeof uuid, "GPU-fake-%d", device->gpu);
    else snprintf(uuid, sizeof uuid, "MIG-fake-%d-%d", device->gpu, device->slice);
    return text_of(device, "uuid", uuid, out, size);
}

Answer nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory *memory) {
    ON(device);
    memory->total = of(device, "mem_total_mib", 16384) * MIB;
    memory->used = of(device, "mem_used_mib", 0) * MIB;
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return OK;
}

Answer nvmlDeviceGetUtilizationRates(struct device *device, struct rates *rates) {
    ON(device);
    if (device->slice >= 0) return NOT_SUPPORTED;
    rates->gpu = (unsigned)of(device, "util", 0);
    rates->memory = 0;
    return OK;
}

Answer nvmlDeviceGetTemperature(struct device *device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    ON(device);
    if (device->slice >= 0) return NOT_SUPPORTED;
    *celsius = (unsigned)of(device, "temp", 35);
    return OK;
}

Answer nvmlDeviceGetPowerUsage(struct device *device, unsigned *milliwatts) {
    ON(device);
    if (device->slice >= 0) return NOT_SUPPORTED;
    *milliwatts = (unsigned)of(device, "power_mw", 75000);
    return OK;
}

Answer nvmlDeviceGetTotalEccErrors(struct device *device, unsigned uncorrected, unsigned counter, Big *errors) {
    (void)counter;
    ON(device);
    *errors = uncorrected ? of(device, "ecc", 0) : 0;
    return OK;
}

/* ── slices ───────────────────────────────────────────────────────────────────────────────────── */

Answer nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending) {
    ON(device);
    *current = *pending = of(device, "mig", 0) > 0;
    return OK;
}

Answer nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *count) {
    ON(device);
    *count = SLICES - 1;
    return OK;
}

Answer nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **slice) {
    ON(device);
    if (index >= of(device, "mig", 0) || index >= SLICES) return NOT_FOUND;
    *slice = &slices[device->gpu][index];
    return OK;
}

/* ── events ───────────────────────────────────────────────────────────────────────────────────── */

Answer nvmlEventSetCreate(void **set) {
    ON(NULL);
    *set = &last_event;
    return OK;
}
Answer nvmlEventSetFree(void *set) { (void)set; return OK; }

Answer nvmlDeviceGetSupportedEventTypes(struct device *device, Big *types) {
    ON(device);
    *types = 0x1b;
    return OK;
}

Answer nvmlDeviceRegisterEvents(struct device *device, Big types, void *set) {
    (void)set;
    ON(device);
    registered[device->gpu] |= types;
    return OK;
}

Answer nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout_ms) {
    (void)set;
    for (unsigned waited = 0;; waited += 20) {
        char value[128];
        Big number, type, data;
        int gpu;
        ON(NULL);
        if (find("event", value, sizeof value)
            && sscanf(value, "%llu:%d:%llu:%llu", &number, &gpu, &type, &data) == 4
            && number > last_event && gpu >= 0 && gpu < GPUS && (registered[gpu] & type)) {
            last_event = number;
            *event = (struct event){&gpus[gpu], type, data, ~0u, ~0u};
            return OK;
        }
        if (waited >= timeout_ms) return TIMED_OUT;
        usleep(20000);
    }
}
