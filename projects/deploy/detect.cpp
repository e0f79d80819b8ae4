// Runs a detector that `stratified3d export` wrote on a .bin file of points and prints its boxes.
//
//   cmake -B build -S projects/deploy -DCMAKE_PREFIX_PATH="$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
//   cmake --build build
//   build/detect detector.pt2 sweep.bin [COLUMNS]   one line for each box: class, score, x y z dx dy dz yaw [vx vy]
// COLUMNS: of the file, by default 5 for .pcd.bin and else 4; nothing in the file itself says how many it has

#include <torch/torch.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

using torch::inductor::AOTIModelPackageLoader;
using About = std::unordered_map<std::string, std::string>;  // what a package says about itself

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw std::runtime_error(otherwise);
}

void check(const About& about, const std::string& path) {
  require(about.count("stratified3d.torch"), path + " is not a package that `stratified3d export` of this version wrote");
  const std::string& torch = about.at("stratified3d.torch");
  require(std::string(TORCH_VERSION).substr(0, torch.size()) == torch,
          path + " was compiled by torch " + torch + " and this is libtorch " + TORCH_VERSION);
  require(about.at("stratified3d.device") == "cpu" || torch::cuda::is_available(),
          path + " is a package for cuda, and this machine has no CUDA device");
}

// [P, 5] x, y, z, intensity and an age of 0; files of nuScenes have a ring index, which is left out
torch::Tensor read_points(const std::string& path, int64_t columns) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  require(bool(file), "there is no point file " + path);
  require(columns >= 4, "COLUMNS is a number and at least 4: x, y, z, intensity");
  const int64_t bytes = file.tellg(), row = columns * sizeof(float);
  require(bytes % row == 0, path + " has " + std::to_string(bytes) + " bytes, which are no rows of " +
                                std::to_string(columns) + " numbers");
  auto points = torch::zeros({bytes / row, 5}), table = torch::empty({bytes / row, columns});
  require(bool(file.seekg(0).read(static_cast<char*>(table.data_ptr()), bytes)), path + " cannot be read");
  points.slice(1, 0, 4).copy_(table.slice(1, 0, 4));
  return points;
}

// as many rows as the program asks for: 2 or more, or those of static shapes; rows of NaN are no points
torch::Tensor fit(const torch::Tensor& points, const About& about) {
  const std::string& room = about.at("stratified3d.num_points");
  const int64_t rows = room == "None" ? points.size(0) + 2 : std::stoll(room);
  require(points.size(0) <= rows, "the file has " + std::to_string(points.size(0)) + " points and the package room for " + room);
  auto padded = torch::full({rows, points.size(1)}, NAN);
  padded.slice(0, 0, points.size(0)).copy_(points);
  return padded;
}

void detect(const std::string& package, const std::string& file, int64_t columns) {
  require(bool(std::ifstream(package)), "there is no package " + package);
  const About about = AOTIModelPackageLoader::load_metadata_from_package(package, "model");
  check(about, package);
  const auto points = fit(read_points(file, columns), about).to(torch::Device(about.at("stratified3d.device")));
  AOTIModelPackageLoader loader(package);  // its outputs are gone when it is
  const auto outputs = loader.run({points});
  const int64_t found = outputs[3].item<int64_t>(), voxels = outputs[4].item<int64_t>();
  const std::string& capacity = about.at("stratified3d.capacity");
  const std::string full = "the frame has " + std::to_string(voxels) + " voxels and the package a capacity of " + capacity;
  const bool is_full = capacity != "None" && voxels > std::stoll(capacity);
  require(!is_full || about.at("stratified3d.overflow") == "drop", full);
  if (is_full) std::fprintf(stderr, "detect: %s; the farthest are dropped\n", full.c_str());
  require(found >= 0, "NMS of this frame takes more rounds than the package has");
  const auto boxes = outputs[0].cpu(), scores = outputs[1].cpu(), labels = outputs[2].cpu();
  std::istringstream lines(about.at("stratified3d.classes"));
  std::vector<std::string> classes;
  for (std::string name; std::getline(lines, name);) classes.push_back(name);
  for (int64_t i = 0; i < found; ++i) {
    std::printf("%s %.6f", classes.at(labels[i].item<int64_t>()).c_str(), scores[i].item<float>());
    for (int64_t k = 0; k < boxes.size(1); ++k) std::printf(" %.5f", boxes[i][k].item<float>());
    std::printf("\n");
  }
}

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: detect PACKAGE.pt2 POINTS.bin [COLUMNS]\n");
    return 2;
  }
  try {
    torch::NoGradGuard no_grad;
    const std::string file = argv[2];
    detect(argv[1], file, argc == 4 ? std::atoll(argv[3]) : file.ends_with(".pcd.bin") ? 5 : 4);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "detect: %s\n", error.what());
    return 1;
  }
}
