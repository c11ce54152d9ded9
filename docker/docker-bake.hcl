# All images of Trainyard; run from the repository's root:
#   SITE_DIR=/path/to/folder docker buildx bake -f docker/docker-bake.hcl base
#   SITE_DIR=/path/to/folder docker buildx bake -f docker/docker-bake.hcl
# Role perception_images does this with the site's values. Two calls, because the engine of Debian 12 knows no target contexts.
variable "VERSION" { default = "0.1.0" }
variable "SUITE" { default = "bookworm" }
variable "DEBIAN_IMAGE" { default = "debian:bookworm-20250520-slim" }
# The site's Debian mirror; empty keeps what the Debian image names.
variable "APT_MIRROR" { default = "" }
# Proxy of the build; these arguments never stay in an image.
variable "HTTP_PROXY" { default = "" }
variable "HTTPS_PROXY" { default = "" }
variable "NO_PROXY" { default = "" }
# Folder with ca.pem, pip.conf, apt.conf and uv.toml of the site. They are secrets of the build: no layer keeps them.
variable "SITE_DIR" { default = "" }
# Hash of each image's inputs, kept as a label: equal means nothing to build.
variable "BASE_INPUTS" { default = "" }
variable "LITE_INPUTS" { default = "" }
variable "AGENT_INPUTS" { default = "" }
variable "REGISTRY_INPUTS" { default = "" }
# The date of every file that a build of the perception images writes: 2025-01-01. The same inputs give the same layers.
variable "FILES_EPOCH" { default = "1735689600" }

group "default" { targets = ["lite", "agent", "perception-3-11-cpu"] }

target "_site" {
  context = "."
  secret = [
    "id=ca,src=${SITE_DIR}/ca.pem",
    "id=pip,src=${SITE_DIR}/pip.conf",
    "id=apt,src=${SITE_DIR}/apt.conf",
    "id=uv,src=${SITE_DIR}/uv.toml",
  ]
  args = {
    BASE_IMAGE  = "trainyard/base:${SUITE}"
    HTTP_PROXY  = HTTP_PROXY
    HTTPS_PROXY = HTTPS_PROXY
    NO_PROXY    = NO_PROXY
  }
}

target "base" {
  inherits   = ["_site"]
  dockerfile = "docker/base/Dockerfile"
  args       = { DEBIAN_IMAGE = DEBIAN_IMAGE, APT_MIRROR = APT_MIRROR, SUITE = SUITE }
  tags       = ["trainyard/base:${SUITE}"]
  labels     = { "io.trainyard.inputs" = BASE_INPUTS }
}

target "lite" {
  inherits   = ["_site"]
  dockerfile = "lite/Dockerfile"
  tags       = ["trainyard/lite:${VERSION}"]
  labels     = { "io.trainyard.inputs" = LITE_INPUTS }
}

target "agent" {
  inherits   = ["_site"]
  dockerfile = "agents/Dockerfile"
  tags       = ["trainyard/agent:${VERSION}"]
  labels     = { "io.trainyard.inputs" = AGENT_INPUTS }
}

target "registry" {
  inherits   = ["_site"]
  dockerfile = "docker/registry/Dockerfile"
  tags       = ["trainyard/registry:${VERSION}"]
  labels     = { "io.trainyard.inputs" = REGISTRY_INPUTS }
}

# Where each Python comes from: the release of Debian or Ubuntu that has it. provider uv takes any of them on SYSTEMS.uv.
variable "SYSTEMS" {
  default = {
    "3.8"  = { suite = "focal", image = "ubuntu:focal" }
    "3.9"  = { suite = "bullseye", image = "debian:bullseye-slim" }
    "3.10" = { suite = "jammy", image = "ubuntu:jammy" }
    "3.11" = { suite = "bookworm", image = "debian:bookworm-slim" }
    "3.12" = { suite = "noble", image = "ubuntu:noble" }
    "3.13" = { suite = "trixie", image = "debian:trixie-slim" }
  }
}

# perception-3-11-cpu ... One lock each; the site lays its groups, tags and labels over these (role perception_images).
target "perception" {
  name       = "perception-${replace(python, ".", "-")}-${variant}"
  matrix     = { python = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"], variant = ["cpu", "cuda"] }
  inherits   = ["_site"]
  dockerfile = "docker/perception/Dockerfile"
  target     = "perception"
  args = {
    SYSTEM_IMAGE   = SYSTEMS[python].image
    APT_SUITE      = SYSTEMS[python].suite
    APT_MIRROR     = APT_MIRROR
    PYTHON         = python
    LOCK           = "${python}-${variant}"
    PACKAGE_GROUPS = "runtime core eval"
    FILES_EPOCH    = FILES_EPOCH
  }
  tags = ["trainyard/perception:${python}-${variant}"]
  labels = {
    "org.opencontainers.image.title"    = "Trainyard perception, Python ${python}, ${variant}"
    "org.opencontainers.image.version"  = VERSION
    "org.opencontainers.image.licenses" = "Apache-2.0"
    "io.trainyard.python"               = python
    "io.trainyard.variant"              = variant
  }
}
