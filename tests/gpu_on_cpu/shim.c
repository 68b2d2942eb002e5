/* Shows Intel's OpenCL runtime for CPUs to OpenVINO's GPU plugin as a GPU. Preloaded; functions only, never speed.
 *
 * Four things stand between the two:
 * - the plugin looks for a device of type GPU, with Intel's attributes, and of another vendor than Intel, whose
 *   kernels in binary it would want;
 * - the plugin releases a program while its kernels live, and asks them for it later: the runtime then gives a pointer
 *   that is gone;
 * - the runtime's compiler takes a warning of the plugin's kernels for an error;
 * - the runtime makes lanes of a subgroup of dimension 0 only, and one kernel has them in dimension 2: it is turned.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICE_TYPE = 0x1000, VENDOR_ID = 0x1001, KERNEL_NAME = 0x1190, KERNEL_PROGRAM = 0x1194 };
enum { DEVICE_IS_GPU = 4, OTHER_VENDOR = 0x10006, KERNELS = 1 << 16 };

static const struct { uint32_t name, value; } attributes[] = {
    {0x4250, 0x03000000}, {0x4252, 1}, {0x4253, 6}, {0x4254, 16}, {0x4255, 7}, {0x4256, 1}, /* ip, slices ... */
};

static void *find(const char *name) {
    static void *library;
    if (!library) library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_GLOBAL);
    return library ? dlsym(library, name) : NULL;
}
#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))find(#name)

int32_t clGetDeviceInfo(void *device, uint32_t what, size_t size, void *value, size_t *needed) {
    REAL(int32_t, clGetDeviceInfo, void *, uint32_t, size_t, void *, size_t *);
    int32_t status = real(device, what, size, value, needed);
    if (status || !value) return status;
    if (what == DEVICE_TYPE) *(uint64_t *)value = DEVICE_IS_GPU;
    if (what == VENDOR_ID) *(uint32_t *)value = OTHER_VENDOR;
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
        if (what == attributes[i].name) *(uint32_t *)value = attributes[i].value;
    return 0;
}

int32_t clBuildProgram(void *program, uint32_t count, void *const *devices, const char *options, void *done, void *data) {
    REAL(int32_t, clBuildProgram, void *, uint32_t, void *const *, const char *, void *, void *);
    char *more = NULL;
    if (asprintf(&more, "%s -Wno-error=incompatible-pointer-types", options ? options : "") < 0) return -6;
    int32_t status = real(program, count, devices, more, done, data);
    free(more);
    return status;
}

/* The program of each kernel, kept alive for good. */
static struct { void *kernel, *program; } made[KERNELS];
static unsigned count;

static void keep(void *kernel, void *program) {
    REAL(int32_t, clRetainProgram, void *);
    if (!kernel || !program) return;
    real(program);
    unsigned place = __sync_fetch_and_add(&count, 1) % KERNELS;
    made[place].kernel = kernel;
    made[place].program = program;
}

static void *program_of(void *kernel) {
    for (unsigned i = count; i-- > 0 && count - i <= KERNELS;)
        if (made[i % KERNELS].kernel == kernel) return made[i % KERNELS].program;
    return NULL;
}

void *clCreateKernel(void *program, const char *name, int32_t *status) {
    REAL(void *, clCreateKernel, void *, const char *, int32_t *);
    void *kernel = real(program, name, status);
    keep(kernel, program);
    return kernel;
}

int32_t clCreateKernelsInProgram(void *program, uint32_t room, void **kernels, uint32_t *found) {
    REAL(int32_t, clCreateKernelsInProgram, void *, uint32_t, void **, uint32_t *);
    int32_t status = real(program, room, kernels, found);
    for (uint32_t i = 0; !status && kernels && i < room; i++) keep(kernels[i], program);
    return status;
}

void *clCloneKernel(void *source, int32_t *status) {
    REAL(void *, clCloneKernel, void *, int32_t *);
    void *kernel = real(source, status);
    keep(kernel, program_of(source));
    return kernel;
}

int32_t clGetKernelInfo(void *kernel, uint32_t what, size_t size, void *value, size_t *needed) {
    REAL(int32_t, clGetKernelInfo, void *, uint32_t, size_t, void *, size_t *);
    int32_t status = real(kernel, what, size, value, needed);
    void *program = what == KERNEL_PROGRAM && value && !status ? program_of(kernel) : NULL;
    if (program) *(void **)value = program;
    return status;
}

/* Kernel reorder_weights_opt, its dimensions 0 and 2 exchanged: in its text here, and where it is run below. */
#define LANES "__attribute__((reqd_work_group_size(1, 1, FIRST_BLOCK_SIZE)))"
#define LANES_TURNED "__attribute__((reqd_work_group_size(FIRST_BLOCK_SIZE, 1, 1)))"
#define END "#undef FIRST_BLOCK_SIZE"

static void turn(char *text) {
    for (char *at = text; (at = strstr(at, LANES)); at += strlen(LANES)) {
        memcpy(at, LANES_TURNED, strlen(LANES));
        char *end = strstr(at, END);
        if (!end) end = at + strlen(at);
        for (char *in = at; in + 16 < end; in++) {
            if (!strncmp(in, "get_global_id(0)", 16)) in[14] = '2';
            else if (!strncmp(in, "get_group_id(2)", 15)) in[13] = '0';
        }
    }
}

void *clCreateProgramWithSource(void *context, uint32_t parts, const char **texts, const size_t *lengths, int32_t *status) {
    REAL(void *, clCreateProgramWithSource, void *, uint32_t, const char **, const size_t *, int32_t *);
    size_t total = 0, done = 0;
    for (uint32_t i = 0; i < parts; i++) total += lengths && lengths[i] ? lengths[i] : strlen(texts[i]);
    char *whole = malloc(total + 1);
    if (!whole) return real(context, parts, texts, lengths, status);
    for (uint32_t i = 0; i < parts; i++) {
        size_t length = lengths && lengths[i] ? lengths[i] : strlen(texts[i]);
        memcpy(whole + done, texts[i], length);
        done += length;
    }
    whole[total] = 0;
    turn(whole);
    const char *text = whole;
    void *program = real(context, 1, &text, &total, status);
    free(whole);
    return program;
}

int32_t clEnqueueNDRangeKernel(void *queue, void *kernel, uint32_t dimensions, const size_t *offset, const size_t *global,
                               const size_t *local, uint32_t waits, const void *events, void *event) {
    REAL(int32_t, clEnqueueNDRangeKernel, void *, void *, uint32_t, const size_t *, const size_t *, const size_t *,
         uint32_t, const void *, void *);
    char name[256] = "";
    clGetKernelInfo(kernel, KERNEL_NAME, sizeof name - 1, name, NULL);
    if (dimensions == 3 && local && local[0] == 1 && local[2] > 1 && !strncmp(name, "reorder_weights_opt", 19)) {
        size_t all[] = {global[2], global[1], global[0]}, lanes[] = {local[2], local[1], local[0]};
        return real(queue, kernel, 3, offset, all, lanes, waits, events, event);
    }
    return real(queue, kernel, dimensions, offset, global, local, waits, events, event);
}
