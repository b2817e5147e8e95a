/* A stand-in for libnvidia-ml.so.1: the symbols that nvidia-ml-py looks up, over a script.
 *
 * NVML_DOUBLE names a text file, read again at every call, so that all processes see the same GPUs:
 *
 *     clock 12.5                 the time in seconds; `clock real`: seconds since nvmlInit;
 *                                `clock since 99.5`: the system's monotonic clock less this;
 *                                `clock lines FILE`: a second for each line that FILE has
 *     gpu GPU-a NVIDIA-A100 0 15 3 0 1000 0.02 0:100 10:300
 *
 * A gpu line holds its UUID and name; what its energy counter, its power, its field values and the
 * setting of its power limit return (an nvmlReturn_t, 0 is success); what the counter showed at time 0
 * in mJ; the seconds between two values of the counter; and its power curve as second:watt points, in
 * order of time, straight between them and level outside. The counter is the curve's integral. Power
 * limits are appended to NVML_DOUBLE.limits as `GPU-a second watt`, and cut the curve off from then on.
 * GPUs are counted in the order of their lines; `MIG-…` lines are found by name only.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, UNKNOWN = 999 };
enum { MAX_GPUS = 16, MAX_POINTS = 1024, UUID_SIZE = 96, LINE = 65536, SLICES = 64 };
enum { LEAST_MW = 100000, MOST_MW = 400000, POWER_INSTANT = 186 };

typedef struct {
    int energy_error, power_error, field_error, limit_error, points, limits;
    double offset_mj, refresh, second[MAX_POINTS], watt[MAX_POINTS];
    double since[MAX_POINTS], limit[MAX_POINTS];
    char uuid[UUID_SIZE], name[UUID_SIZE];
} Gpu;

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type, code;
    union { double d; int i; unsigned u; unsigned long l; unsigned long long ll; } value;
} FieldValue;

static int users;
static double born;
static char handles[MAX_GPUS][UUID_SIZE]; /* a handle points at the UUID that it was asked by */

static double real_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double lines_of(const char *path) {
    double lines = 0;
    FILE *file = fopen(path, "r");
    for (int c; file && (c = getc(file)) != EOF;) lines += c == '\n';
    if (file) fclose(file);
    return lines;
}

static void read_limits(Gpu *gpu) {
    char path[4096], name[UUID_SIZE];
    double since, watt;
    snprintf(path, sizeof path, "%s.limits", getenv("NVML_DOUBLE"));
    gpu->limits = 0;
    FILE *file = fopen(path, "r");
    if (!file) return;
    while (gpu->limits < MAX_POINTS && fscanf(file, "%95s %lf %lf", name, &since, &watt) == 3)
        if (!strcmp(name, gpu->uuid)) {
            gpu->since[gpu->limits] = since;
            gpu->limit[gpu->limits++] = watt;
        }
    fclose(file);
}

/* Read the script: the time, how many GPUs there are, and the one called `uuid` or, without a name,
 * the one at `index`. */
static int script(const char *uuid, int index, double *now, unsigned *count, Gpu *gpu) {
    char line[LINE], lines[4096], name[UUID_SIZE], word[32]; /* several threads may ask at once */
    int at, used, found = NOT_FOUND, timed = 0;
    double from;
    const char *path = getenv("NVML_DOUBLE");
    if (!users) return UNINITIALIZED;
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return UNKNOWN;
    *count = 0;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "clock %31s", word) == 1) {
            *now = strcmp(word, "real") ? atof(word) : real_seconds() - born;
            if (sscanf(line, "clock since %lf", &from) == 1) *now = real_seconds() - from;
            if (sscanf(line, "clock lines %4095s", lines) == 1) *now = lines_of(lines);
            timed = 1;
        }
        if (sscanf(line, "gpu %95s%n", name, &at) != 1) continue;
        int place = strncmp(name, "MIG-", 4) ? (int)(*count)++ : -1;
        if (!gpu || (uuid ? strcmp(name, uuid) : place != index)) continue;
        strcpy(gpu->uuid, name);
        if (sscanf(line + at, "%95s %d %d %d %d %lf %lf%n", gpu->name, &gpu->energy_error,
                   &gpu->power_error, &gpu->field_error, &gpu->limit_error, &gpu->offset_mj,
                   &gpu->refresh, &used) != 7) continue;
        at += used;
        for (gpu->points = 0; gpu->points < MAX_POINTS; ++gpu->points, at += used)
            if (sscanf(line + at, "%lf:%lf%n", &gpu->second[gpu->points],
                       &gpu->watt[gpu->points], &used) != 2) break;
        if (gpu->points) found = SUCCESS;
    }
    fclose(file);
    if (found == SUCCESS) read_limits(gpu);
    return timed ? found : UNKNOWN;
}

static double limit_at(const Gpu *gpu, double now) {
    double watt = MOST_MW / 1e3;
    for (int i = 0; i < gpu->limits && gpu->since[i] <= now; ++i) watt = gpu->limit[i];
    return gpu->limits ? watt : HUGE_VAL;
}

static double curve(const Gpu *gpu, double now) {
    int i = 0;
    while (i < gpu->points && gpu->second[i] <= now) ++i;
    if (i == 0) return gpu->watt[0];
    if (i == gpu->points) return gpu->watt[i - 1];
    double share = (now - gpu->second[i - 1]) / (gpu->second[i] - gpu->second[i - 1]);
    return gpu->watt[i - 1] + share * (gpu->watt[i] - gpu->watt[i - 1]);
}

static double watts(const Gpu *gpu, double now) { return fmin(curve(gpu, now), limit_at(gpu, now)); }

/* From one moment to another, between which no limit and no slope changes. */
static double piece(const Gpu *gpu, double from, double to) {
    double sum = 0, cap = limit_at(gpu, from), step = (to - from) / SLICES;
    if (fmax(curve(gpu, from), curve(gpu, to)) <= cap)
        return (curve(gpu, from) + curve(gpu, to)) / 2 * (to - from);
    for (int i = 0; i < SLICES; ++i) sum += fmin(cap, curve(gpu, from + (i + 0.5) * step)) * step;
    return sum;
}

static double joules(const Gpu *gpu, double now) {
    double sum = 0, from = 0;
    while (from < now) {
        double to = now;
        for (int i = 0; i < gpu->points; ++i)
            if (gpu->second[i] > from && gpu->second[i] < to) to = gpu->second[i];
        for (int i = 0; i < gpu->limits; ++i)
            if (gpu->since[i] > from && gpu->since[i] < to) to = gpu->since[i];
        sum += piece(gpu, from, to);
        from = to;
    }
    return sum;
}

static int handle(const char *uuid, void **device) {
    for (int i = 0; i < MAX_GPUS; ++i) {
        if (!handles[i][0]) snprintf(handles[i], UUID_SIZE, "%s", uuid);
        if (strcmp(handles[i], uuid)) continue;
        *device = handles[i];
        return SUCCESS;
    }
    return UNKNOWN;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!users++) born = real_seconds();
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    --users;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "scripted error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    double now;
    int code = script(NULL, -1, &now, count, NULL);
    return code == NOT_FOUND ? SUCCESS : code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(uuid, -1, &now, &count, &gpu);
    return code == SUCCESS ? handle(uuid, device) : code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(NULL, (int)index, &now, &count, &gpu);
    return code == SUCCESS ? handle(gpu.uuid, device) : code == NOT_FOUND ? INVALID : code;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    snprintf(uuid, size, "%s", (const char *)device);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(device, -1, &now, &count, &gpu);
    if (code == SUCCESS) snprintf(name, size, "%s", gpu.name);
    return code;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(device, -1, &now, &count, &gpu);
    if (code != SUCCESS || gpu.energy_error) return code ? code : gpu.energy_error;
    if (gpu.refresh > 0) now = floor(now / gpu.refresh) * gpu.refresh;
    *millijoules = (unsigned long long)(gpu.offset_mj + joules(&gpu, now) * 1e3 + 0.5);
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(device, -1, &now, &count, &gpu);
    if (code != SUCCESS || gpu.power_error) return code ? code : gpu.power_error;
    *milliwatts = (unsigned)(watts(&gpu, now) * 1e3 + 0.5);
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(void *device, int size, FieldValue *values) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(device, -1, &now, &count, &gpu);
    for (int i = 0; code == SUCCESS && i < size; ++i) {
        values[i].code = values[i].field == POWER_INSTANT ? (unsigned)gpu.field_error : NOT_SUPPORTED;
        values[i].type = 1; /* unsigned int */
        values[i].value.u = (unsigned)(watts(&gpu, now) * 1e3 + 0.5);
    }
    return code;
}

int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *least, unsigned *most) {
    (void)device;
    *least = LEAST_MW;
    *most = MOST_MW;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(device, -1, &now, &count, &gpu);
    if (code == SUCCESS) *milliwatts = gpu.limits ? (unsigned)(limit_at(&gpu, now) * 1e3 + 0.5) : MOST_MW;
    return code;
}

int nvmlDeviceSetPowerManagementLimit(void *device, unsigned milliwatts) {
    double now;
    unsigned count;
    Gpu gpu;
    char path[4096];
    int code = script(device, -1, &now, &count, &gpu);
    if (code != SUCCESS || gpu.limit_error) return code ? code : gpu.limit_error;
    if (milliwatts < LEAST_MW || milliwatts > MOST_MW) return INVALID;
    snprintf(path, sizeof path, "%s.limits", getenv("NVML_DOUBLE"));
    FILE *file = fopen(path, "a");
    if (!file) return UNKNOWN;
    fprintf(file, "%s %.9f %.3f\n", gpu.uuid, now, milliwatts / 1e3);
    return fclose(file) ? UNKNOWN : SUCCESS;
}
