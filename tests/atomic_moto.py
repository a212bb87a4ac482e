"""moto's S3 server with atomic conditional writes, as S3 has them; by itself it looks for the object, then writes.

As a program it takes the arguments of moto's server.
"""

import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

look_and_write = S3Response.put_object
one_at_a_time = threading.Lock()


def put_object(self: S3Response) -> Any:
    """A write once no other one is under way."""
    with one_at_a_time:
        return look_and_write(self)


if __name__ == "__main__":
    S3Response.put_object = put_object
    main()
