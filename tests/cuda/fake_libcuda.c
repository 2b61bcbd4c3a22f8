// A libcuda that has the entry points of green contexts alone, with the prototypes of cuda.h, and checks what it is given.
//
// FAKE_MULTIPROCESSORS: of the device.  FAKE_REFUSES: the name of an entry point that fails, cuGreenCtxCreate
// only the second time.  FAKE_LACKS: of one that is not there.
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int contexts = 0, streams = 0;
static int asked = 0;  // for contexts, since the device was asked for

static unsigned multiprocessors(void) {
  const char* text = getenv("FAKE_MULTIPROCESSORS");
  return text ? (unsigned)atoi(text) : 132;
}
static int refuses(const char* name) {
  const char* text = getenv("FAKE_REFUSES");
  return text && !strcmp(text, name);
}

CUresult fake_cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal + 40;
  asked = 0;
  return CUDA_SUCCESS;
}
CUresult fake_cuDeviceGetDevResource(CUdevice device, CUdevResource* resource, CUdevResourceType type) {
  if (device != 41 || type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_VALUE;
  memset(resource, 0x5a, sizeof *resource);
  resource->type = type;
  resource->sm.smCount = multiprocessors();
  return CUDA_SUCCESS;
}
// Rounds up to 8, as compute capability 9.0.
CUresult fake_cuDevSmResourceSplitByCount(CUdevResource* result, unsigned* groups, const CUdevResource* input,
                                          CUdevResource* remaining, unsigned flags, unsigned least) {
  if (refuses("cuDevSmResourceSplitByCount")) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  if (*groups != 1 || flags || input->_internal_padding[91] != 0x5a) return CUDA_ERROR_INVALID_VALUE;
  const unsigned count = (least + 7) / 8 * 8;
  *result = *remaining = *input;
  *groups = count <= input->sm.smCount;
  result->sm.smCount = count;
  remaining->sm.smCount = count <= input->sm.smCount ? input->sm.smCount - count : 0;
  return CUDA_SUCCESS;
}
CUresult fake_cuDevResourceGenerateDesc(CUdevResourceDesc* description, CUdevResource* resources, unsigned count) {
  if (count != 1 || resources->type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_VALUE;
  *description = (CUdevResourceDesc)(size_t)(0x700000000 + resources->sm.smCount);
  return CUDA_SUCCESS;
}
CUresult fake_cuGreenCtxCreate(CUgreenCtx* context, CUdevResourceDesc description, CUdevice device, unsigned flags) {
  if (refuses("cuGreenCtxCreate") && ++asked == 2) return CUDA_ERROR_NOT_SUPPORTED;
  if (device != 41 || flags != CU_GREEN_CTX_DEFAULT_STREAM || (size_t)description >> 32 != 7) return CUDA_ERROR_INVALID_VALUE;
  *context = (CUgreenCtx)((size_t)description + (0x100000000));
  ++contexts;
  return CUDA_SUCCESS;
}
CUresult fake_cuGreenCtxDestroy(CUgreenCtx context) {
  --contexts;
  return CUDA_SUCCESS;
}
CUresult fake_cuGreenCtxStreamCreate(CUstream* stream, CUgreenCtx context, unsigned flags, int priority) {
  if (flags != CU_STREAM_NON_BLOCKING || priority || (size_t)context >> 32 != 8) return CUDA_ERROR_INVALID_VALUE;
  *stream = (CUstream)((size_t)context + 1000 * (size_t)++streams);
  return CUDA_SUCCESS;
}
CUresult fake_cuGetErrorName(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED" : "CUDA_ERROR_OF_ANOTHER_KIND";
  return CUDA_SUCCESS;
}

int contexts_alive(void) { return contexts; }

#define ENTRY(name) {#name, (void*)fake_##name}
CUresult cuGetProcAddress_v2(const char* name, void** address, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult* found) {
  static const struct { const char* name; void* address; } entries[] = {
      ENTRY(cuDeviceGet), ENTRY(cuDeviceGetDevResource), ENTRY(cuDevSmResourceSplitByCount), ENTRY(cuDevResourceGenerateDesc),
      ENTRY(cuGreenCtxCreate), ENTRY(cuGreenCtxDestroy), ENTRY(cuGreenCtxStreamCreate), ENTRY(cuGetErrorName)};
  const char* lacks = getenv("FAKE_LACKS");
  *address = NULL;
  if (version != 12050 || flags) return CUDA_ERROR_INVALID_VALUE;
  for (size_t n = 0; n < sizeof entries / sizeof entries[0]; ++n)
    if (!strcmp(entries[n].name, name) && !(lacks && !strcmp(lacks, name))) *address = entries[n].address;
  *found = *address ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *address ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
