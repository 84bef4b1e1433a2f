"""From any source to the one prepared form: resumable, on all cores."""
