# All images of Trainyard; run from the repository's root:
#   SITE_DIR=/path/with/ca.pem,pip.conf,apt.conf docker buildx bake -f docker/docker-bake.hcl base
#   ... docker buildx bake -f docker/docker-bake.hcl
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
# Folder with ca.pem, pip.conf and apt.conf of the site. They are secrets of the build: no layer keeps them.
variable "SITE_DIR" { default = "" }
# Hash of each image's inputs, kept as a label: equal means nothing to build.
variable "BASE_INPUTS" { default = "" }
variable "LITE_INPUTS" { default = "" }
variable "AGENT_INPUTS" { default = "" }
variable "PERCEPTION_INPUTS" { default = "" }

group "default" { targets = ["lite", "agent", "perception"] }

target "_site" {
  context = "."
  secret = [
    "id=ca,src=${SITE_DIR}/ca.pem",
    "id=pip,src=${SITE_DIR}/pip.conf",
    "id=apt,src=${SITE_DIR}/apt.conf",
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

target "perception" {
  inherits   = ["_site"]
  dockerfile = "docker/perception/Dockerfile"
  args       = { LOCK = "3.11-cpu" }
  tags       = ["trainyard/perception:3.11-cpu"]
  labels     = { "io.trainyard.inputs" = PERCEPTION_INPUTS }
}
