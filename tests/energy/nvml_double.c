/* A stand-in for libnvidia-ml.so.1: the symbols that nvidia-ml-py looks up, over a script.
 *
 * NVML_DOUBLE names a text file, read again at every call:
 *
 *     clock 12.5                 the time in seconds, or `clock real`: seconds since nvmlInit
 *     gpu GPU-a 0 15 1000 0:100 10:300
 *
 * A gpu line holds its UUID, what its energy counter and its power return (an nvmlReturn_t, 0 is
 * success), what the counter showed at time 0 in mJ, and its power curve as second:watt points,
 * in order of time, straight between them and level outside. The counter is the curve's integral.
 * Nothing finds a GPU by index: there is no such symbol here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_FOUND = 6, UNKNOWN = 999 };
enum { MAX_GPUS = 16, MAX_POINTS = 256, UUID_SIZE = 96, LINE = 8192 };

typedef struct {
    int energy_error, power_error, points;
    double offset_mj, second[MAX_POINTS], watt[MAX_POINTS];
} Gpu;

static int users;
static double born;
static char handles[MAX_GPUS][UUID_SIZE]; /* a handle points at the UUID that it was asked by */

static double real_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* Read the script: the time, how many GPUs there are, and the one called `uuid`, if it is there. */
static int script(const char *uuid, double *now, unsigned *count, Gpu *gpu) {
    char line[LINE], name[UUID_SIZE], word[32];
    int at, used, found = NOT_FOUND, timed = 0;
    const char *path = getenv("NVML_DOUBLE");
    if (!users) return UNINITIALIZED;
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return UNKNOWN;
    *count = 0;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "clock %31s", word) == 1) {
            *now = strcmp(word, "real") ? atof(word) : real_seconds() - born;
            timed = 1;
        }
        if (sscanf(line, "gpu %95s%n", name, &at) != 1) continue;
        ++*count;
        if (!uuid || strcmp(name, uuid)) continue;
        if (sscanf(line + at, "%d %d %lf%n", &gpu->energy_error, &gpu->power_error,
                   &gpu->offset_mj, &used) != 3) continue;
        at += used;
        for (gpu->points = 0; gpu->points < MAX_POINTS; ++gpu->points, at += used)
            if (sscanf(line + at, "%lf:%lf%n", &gpu->second[gpu->points],
                       &gpu->watt[gpu->points], &used) != 2) break;
        if (gpu->points) found = SUCCESS;
    }
    fclose(file);
    return timed ? found : UNKNOWN;
}

static double watts(const Gpu *gpu, double now) {
    int i = 0;
    while (i < gpu->points && gpu->second[i] <= now) ++i;
    if (i == 0) return gpu->watt[0];
    if (i == gpu->points) return gpu->watt[i - 1];
    double share = (now - gpu->second[i - 1]) / (gpu->second[i] - gpu->second[i - 1]);
    return gpu->watt[i - 1] + share * (gpu->watt[i] - gpu->watt[i - 1]);
}

static double joules(const Gpu *gpu, double now) {
    double sum = 0, from = 0;
    for (int i = 0; i <= gpu->points && from < now; ++i) {
        double to = i < gpu->points && gpu->second[i] < now ? gpu->second[i] : now;
        if (to <= from) continue;
        sum += (watts(gpu, from) + watts(gpu, to)) / 2 * (to - from);
        from = to;
    }
    return sum;
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
    int code = script(NULL, &now, count, NULL);
    return code == NOT_FOUND ? SUCCESS : code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(uuid, &now, &count, &gpu);
    for (int i = 0; code == SUCCESS && i < MAX_GPUS; ++i) {
        if (!handles[i][0]) snprintf(handles[i], UUID_SIZE, "%s", uuid);
        if (strcmp(handles[i], uuid)) continue;
        *device = handles[i];
        return SUCCESS;
    }
    return code == SUCCESS ? UNKNOWN : code;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    snprintf(uuid, size, "%s", (const char *)device);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(device, &now, &count, &gpu);
    if (code != SUCCESS || gpu.energy_error) return code ? code : gpu.energy_error;
    *millijoules = (unsigned long long)(gpu.offset_mj + joules(&gpu, now) * 1e3 + 0.5);
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    double now;
    unsigned count;
    Gpu gpu;
    int code = script(device, &now, &count, &gpu);
    if (code != SUCCESS || gpu.power_error) return code ? code : gpu.power_error;
    *milliwatts = (unsigned)(watts(&gpu, now) * 1e3 + 0.5);
    return SUCCESS;
}
