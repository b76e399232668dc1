"""Medical volumes: NIfTI and DICOM."""
