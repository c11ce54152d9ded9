# STAND-INS for the images of the official ClearML stack: test images, for hosts without a registry. See README.md.
# Run from the repository's root, after the base (docker/docker-bake.hcl; SITE_DIR as there):
#   SITE_DIR=/path/with/ca.pem,pip.conf,apt.conf docker buildx bake -f tests/images/official/docker-bake.hcl
variable "BASE_IMAGE" { default = "trainyard/base:bookworm" }
# They carry the upstream names, so that a test deploys the very names that production does. Never push them.
variable "SERVER_TAG" { default = "clearml/server:2.3.0" }
variable "MONGO_TAG" { default = "mongo:7.0.22" }
variable "REDIS_TAG" { default = "redis:7.4.1" }
variable "ELASTICSEARCH_TAG" { default = "elasticsearch:8.17.0" }
variable "CADDY_TAG" { default = "caddy:2.10.2" }
variable "HTTP_PROXY" { default = "" }
variable "HTTPS_PROXY" { default = "" }
variable "NO_PROXY" { default = "" }
# Folder with ca.pem, pip.conf and apt.conf of the site. They are secrets of the build: no layer keeps them.
variable "SITE_DIR" { default = "" }

group "default" { targets = ["server", "mongo", "redis", "elasticsearch", "caddy"] }

target "_site" {
  # The root: the server's stand-in holds the lite server.
  context = "."
  secret = [
    "id=ca,src=${SITE_DIR}/ca.pem",
    "id=pip,src=${SITE_DIR}/pip.conf",
    "id=apt,src=${SITE_DIR}/apt.conf",
  ]
  args = {
    BASE_IMAGE  = BASE_IMAGE
    HTTP_PROXY  = HTTP_PROXY
    HTTPS_PROXY = HTTPS_PROXY
    NO_PROXY    = NO_PROXY
  }
}

target "server" {
  inherits   = ["_site"]
  dockerfile = "tests/images/official/clearml-server/Dockerfile"
  tags       = [SERVER_TAG]
}

target "mongo" {
  inherits   = ["_site"]
  dockerfile = "tests/images/official/mongo/Dockerfile"
  tags       = [MONGO_TAG]
}

target "redis" {
  inherits   = ["_site"]
  dockerfile = "tests/images/official/redis/Dockerfile"
  tags       = [REDIS_TAG]
}

target "elasticsearch" {
  inherits   = ["_site"]
  dockerfile = "tests/images/official/elasticsearch/Dockerfile"
  tags       = [ELASTICSEARCH_TAG]
}

target "caddy" {
  inherits   = ["_site"]
  dockerfile = "tests/images/official/caddy/Dockerfile"
  tags       = [CADDY_TAG]
}
