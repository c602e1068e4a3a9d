//! ImageService.

use cri_api::v1;
use cri_api::v1::image_service_server::ImageService;
use image::PullRequest;
use tonic::{Request, Response, Status};

use super::Parts;
use super::chunks::{Streamed, chunked};
use super::convert;
use super::status::{missing, pull_status, status};

type Reply<T> = Result<Response<T>, Status>;

/// ImageService on the image store.
#[derive(Debug)]
pub struct ImageEdge {
    parts: Parts,
}

impl ImageEdge {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// All images, or what a name means.
    fn images_by(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
        if wanted.is_empty() {
            self.parts.images.list().iter().map(|record| convert::image::item(record)).collect()
        } else {
            self.parts.images.resolve(&wanted).iter().map(|record| convert::image::item(record)).collect()
        }
    }
}

/// The image name of a request.
fn name(spec: Option<v1::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(missing("image.image")) } else { Ok(name) }
}

#[tonic::async_trait]
impl ImageService for ImageEdge {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Reply<v1::ListImagesResponse> {
        let images = self.images_by(request.into_inner().filter);
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    type StreamImagesStream = Streamed<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Reply<Self::StreamImagesStream> {
        let images = self.images_by(request.into_inner().filter);
        Ok(chunked(images, |images| v1::StreamImagesResponse { images }))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Reply<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let found = self.parts.images.resolve(&name(request.image)?);
        let info = found.as_ref().filter(|_| request.verbose).map(|record| convert::image::info(record));
        Ok(Response::new(v1::ImageStatusResponse {
            image: found.map(|record| convert::image::item(&record)),
            info: info.unwrap_or_default(),
        }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Reply<v1::PullImageResponse> {
        let request = request.into_inner();
        let handler = request.image.as_ref().map_or("", |image| image.runtime_handler.as_str());
        if !handler.is_empty() {
            // All handlers have the same images, but one that does not exist has none.
            self.parts.pods.settings().handler(handler).map_err(|error| status(&error))?;
        }
        let reference = name(request.image)?;
        let pull = PullRequest { reference, auth: request.auth.map(convert::image::auth), platform: None };
        let id = self.parts.images.pull(pull).await.map_err(|error| pull_status(&error))?;
        Ok(Response::new(v1::PullImageResponse { image_ref: id.to_string() }))
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Reply<v1::RemoveImageResponse> {
        let name = name(request.into_inner().image)?;
        self.parts.images.remove(&name).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Reply<v1::ImageFsInfoResponse> {
        let usage = self.parts.images.usage();
        let images = v1::FilesystemUsage {
            timestamp: usage.timestamp.0,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes_used }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![images.clone()],
            container_filesystems: vec![images],
        }))
    }
}
