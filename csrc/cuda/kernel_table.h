// Every kernel, as functions that start it. A launch checks its arguments, starts work on `stream`
// of the current device and returns; arguments are copied, memory that they point at must outlive the work. Safe from
// several threads.
//
// Check* say what is wrong with arguments, nullptr if nothing is; a launch of wrong ones starts nothing and returns
// kInvalidValue. What cannot be checked, because a pointer has no size, is the caller's duty: maps as lanes.h and nhwc.h have them.
#pragma once
#include "lanes.h"
#include "launch.h"
#include "nhwc.h"
#include "split.h"

namespace hce::cuda {

const char* Check(const ConvF32Args& args);
const char* Check(const DepthwiseF32Args& args);
const char* Check(const LinearF32Args& args);
const char* Check(const WinogradF32Args& args);
const char* Check(const ConvSplitArgs& args);
const char* Check(const PoolF32Args& args);
const char* Check(const AddF32Args& args);
const char* Check(const CopyF32Args& args);
const char* Check(const FlattenF32Args& args);
const char* Check(const LoadImagesArgs& args);
const char* Check(const StoreLogitsArgs& args);
const char* Check(const EnsembleMeanArgs& args);

Status LaunchConv2dF32(const ConvF32Args& args, Stream stream);
Status LaunchDepthwiseF32(const DepthwiseF32Args& args, Stream stream);
Status LaunchLinearF32(const LinearF32Args& args, Stream stream);
Status LaunchWinogradF32(const WinogradF32Args& args, Stream stream);
Status LaunchConv2dSplit(const ConvSplitArgs& args, Stream stream);
Status LaunchPoolF32(const PoolF32Args& args, Stream stream);
Status LaunchAddF32(const AddF32Args& args, Stream stream);
Status LaunchCopyF32(const CopyF32Args& args, Stream stream);
Status LaunchFlattenF32(const FlattenF32Args& args, Stream stream);
Status LaunchLoadImages(const LoadImagesArgs& args, Stream stream);
Status LaunchStoreLogits(const StoreLogitsArgs& args, Stream stream);
Status LaunchEnsembleMean(const EnsembleMeanArgs& args, Stream stream);

const char* Check(const ConvNhwcF32Args& args);
const char* Check(const SumSegmentsArgs& args);
const char* Check(const DepthwiseNhwcF32Args& args);
const char* Check(const CopyChannelsF32Args& args);
const char* Check(const FlattenNhwcF32Args& args);
const char* Check(const LoadNhwcArgs& args);
const char* Check(const StoreNhwcArgs& args);

Status LaunchConvNhwcF32(const ConvNhwcF32Args& args, Stream stream);
Status LaunchSumSegments(const SumSegmentsArgs& args, Stream stream);
Status LaunchDepthwiseNhwcF32(const DepthwiseNhwcF32Args& args, Stream stream);
Status LaunchCopyChannelsF32(const CopyChannelsF32Args& args, Stream stream);
Status LaunchFlattenNhwcF32(const FlattenNhwcF32Args& args, Stream stream);
Status LaunchLoadNhwc(const LoadNhwcArgs& args, Stream stream);
Status LaunchStoreNhwc(const StoreNhwcArgs& args, Stream stream);

// Bytes of shared memory of one thread block of a convolution.
int64_t SharedBytes(const ConvF32Args& args);
int64_t SharedBytes(const WinogradF32Args& args);
int64_t SharedBytes(const ConvSplitArgs& args);

}  // namespace hce::cuda
