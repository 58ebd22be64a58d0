"""Raw datasets to prepared folders of TFRecord. Never sees a model."""
